"""A single-shot detector (SSD, Liu et al., ECCV 2016) on transformers' ResNet or MobileNetV2: two maps, four
anchors in each place.

Legend: B images, A anchors, K classes, H height, W width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import MobileNetV2Config, MobileNetV2Model, ResNetBackbone, ResNetConfig

from plait.compression.tasks.average_precision import Found
from plait.compression.tasks.boxes import matched, offsets, placed, suppress
from plait.compression.tasks.networks import steady
from plait.spec.errors import UserError

SIZES = ((0.07, 0.12, 0.17, 0.22), (0.28, 0.35, 0.45, 0.6))
"""Widths of anchors, in shares of the image, at strides 8 and 16."""
STRIDES = (8, 16)
NEGATIVES = 3
"""Anchors without a box that count in the loss, for each one with a box: the worst of them."""


@dataclass(frozen=True, slots=True)
class DetectorConfig:
    """Sizes of a detector."""

    classes: int = 3
    pixels: int = 128
    """Height and width of its images, a multiple of 16."""
    width: int = 32
    """Channels of the stem, by which all others are scaled: ResNet's first stage has as many, the next two
    twice and four times as many; MobileNetV2 has 32 in the paper."""
    blocks: tuple[int, ...] = (2, 2, 2)
    """Of ResNet-18's first three stages; MobileNetV2 has its own."""
    backbone: str = "resnet18"
    """resnet18 or mobilenetv2."""


class Detector(nn.Module):
    """Offsets and class logits for every anchor, (B, A, 4 + 1 + K); class 0 is nothing."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        if config.backbone not in BACKBONES:
            raise UserError(
                f"no backbone is named {config.backbone}: choose one of {', '.join(BACKBONES)}", "backbone"
            )
        self.backbone = BACKBONES[config.backbone](config)
        widths = self.backbone.widths
        self.towers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(w, w, 3, 1, 1, bias=False), nn.BatchNorm2d(w), nn.ReLU()) for w in widths
        )
        self.answers = 5 + config.classes
        self.heads = nn.ModuleList(
            nn.Conv2d(w, len(sizes) * self.answers, 3, 1, 1) for w, sizes in zip(widths, SIZES, strict=True)
        )
        self.register_buffer("anchor_A4", anchors(config.pixels), persistent=False)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        made = []
        for tower, head, part in zip(self.towers, self.heads, self.backbone(images_BCHW), strict=True):
            answer_BCHW = head(tower(part))
            made.append(answer_BCHW.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, self.answers)))
        return torch.cat(made, 1)


class ResNetMaps(nn.Module):
    """The maps of ResNet's second and third stages, at strides 8 and 16."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        sizes = [config.width * 2**n for n in range(3)]
        told = ResNetConfig(
            embedding_size=config.width,
            hidden_sizes=sizes,
            depths=list(config.blocks),
            layer_type="basic",
            out_features=["stage2", "stage3"],
        )
        self.body = ResNetBackbone(told)
        self.widths = sizes[1:]
        """Channels of the maps."""

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        return self.body(images_BCHW).feature_maps


class MobileMaps(nn.Module):
    """The last maps of MobileNetV2 at strides 8 and 16 (32 and 96 channels in the paper); what comes behind
    them is left out."""

    LAST = (4, 11)
    """Numbers of the blocks that write them."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        told = MobileNetV2Config(depth_multiplier=config.width / 32, tf_padding=False)
        whole = steady(MobileNetV2Model(told, add_pooling_layer=False))
        self.stem, self.blocks = whole.conv_stem, whole.layer[: self.LAST[1] + 1]
        self.widths = [self.blocks[n].reduce_1x1.convolution.out_channels for n in self.LAST]
        """Channels of the maps."""

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        x_BCHW, found = self.stem(images_BCHW), []
        for number, block in enumerate(self.blocks):
            x_BCHW = block(x_BCHW)
            if number in self.LAST:
                found.append(x_BCHW)
        return tuple(found)


BACKBONES: dict[str, Callable[[DetectorConfig], nn.Module]] = {
    "resnet18": ResNetMaps,
    "mobilenetv2": MobileMaps,
}
"""By name."""


def anchors(pixels: int) -> Tensor:
    """Square boxes (A, 4) at the middles of all places of both maps, in the order of the answers."""
    made = []
    for stride, sizes in zip(STRIDES, SIZES, strict=True):
        middle = (torch.arange(pixels // stride) + 0.5) * stride / pixels
        row, column = torch.meshgrid(middle, middle, indexing="ij")
        at = torch.stack([column, row], -1)[:, :, None]
        half = torch.tensor(sizes).view(1, 1, -1, 1) / 2
        made.append(torch.cat([at - half, at + half], -1).view(-1, 4))
    return torch.cat(made)


def detection_loss(answer_BAC: Tensor, anchor_A4: Tensor, truth: list[Found]) -> Tensor:
    """Offsets of anchors that have a box, and classes of these and of the worst others."""
    total = answer_BAC.sum() * 0
    boxes = 0
    for answer_AC, image in zip(answer_BAC, truth, strict=True):
        number_A = matched(anchor_A4, image.box_N4, 0.5)
        has_A = number_A >= 0
        class_A = torch.zeros(len(anchor_A4), dtype=torch.int64)
        class_A[has_A] = image.class_N[number_A[has_A]] + 1
        each_A = nn.functional.cross_entropy(answer_AC[:, 4:], class_A, reduction="none")
        count = int(has_A.sum())
        worst_A = each_A.detach().masked_fill(has_A, 0).argsort(descending=True)[: max(NEGATIVES * count, 10)]
        total = total + each_A[has_A].sum() + each_A[worst_A].sum()
        if count:
            goal_A4 = offsets(image.box_N4[number_A[has_A]], anchor_A4[has_A])
            total = total + nn.functional.smooth_l1_loss(answer_AC[has_A, :4], goal_A4, reduction="sum")
        boxes += count
    return total / max(boxes, 1)


@torch.no_grad()
def detections(
    answer_BAC: Tensor, anchor_A4: Tensor, *, least: float = 0.05, most: float = 0.45, count: int = 100
) -> list[Found]:
    """Boxes of at least that score, without those that overlap a better one of their class too much."""
    box_BA4, chance_BAK = placed(answer_BAC[..., :4], anchor_A4), answer_BAC[..., 4:].softmax(-1)[..., 1:]
    made = []
    for box_A4, chance_AK in zip(box_BA4, chance_BAK, strict=True):
        parts = []
        for number in range(chance_AK.shape[1]):
            likely_A = (chance_AK[:, number] >= least).nonzero()[:, 0]
            likely_A = likely_A[chance_AK[likely_A, number].argsort(descending=True)[:400]]
            kept = likely_A[suppress(box_A4[likely_A], chance_AK[likely_A, number], most, count)]
            parts.append((box_A4[kept], torch.full((len(kept),), number), chance_AK[kept, number]))
        made.append(Found(*(torch.cat(part) for part in zip(*parts, strict=True))))
    return made
