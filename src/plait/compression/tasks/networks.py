"""Networks for classification: transformers' ResNet and MobileNetV2, and those of CIFAR-10 that it lacks."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import (
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
)

from plait.spec.errors import UserError


def logits(module: nn.Module, images_BCHW: Tensor) -> Tensor:
    """Class logits (B, classes) of transformers' modules and of ours."""
    out = module(images_BCHW)
    return out if isinstance(out, Tensor) else out.logits


class Block(nn.Module):
    """Two 3x3 convolutions and a residual sum (He et al., 2016); a 1x1 shortcut where widths differ."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x_BCHW)))))
        return torch.relu(inner + self.shortcut(x_BCHW))


class CifarResNet(nn.Module):
    """ResNet of 6n + 2 layers for small images; `width` is that of its first third (16 in the paper)."""

    def __init__(self, depth: int, classes: int, width: int) -> None:
        super().__init__()
        assert (depth - 2) % 6 == 0, "three thirds of blocks of two layers, a stem and a head"
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        widths = [width] * ((depth - 2) // 6)
        widths += [2 * w for w in widths] + [4 * w for w in widths]
        before = [width, *widths]
        self.blocks = nn.Sequential(
            *(Block(i, o, 1 if i == o else 2) for i, o in zip(before, widths, strict=False))
        )
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x_BCHW)).mean((2, 3)))


class VggSmall(nn.Module):
    """Six 3x3 convolutions in three pairs, each pair pooled, and one linear layer."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        widths = [width, width, 2 * width, 2 * width, 4 * width, 4 * width]
        parts: list[nn.Module] = []
        for number, (i, o) in enumerate(zip([3, *widths], widths, strict=False)):
            parts += [nn.Conv2d(i, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]
            parts += [nn.MaxPool2d(2)] if number % 2 else []
        self.body = nn.Sequential(*parts)
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.head(self.body(x_BCHW).mean((2, 3)))


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """Which network."""

    name: str = "resnet20"
    """One of `NAMES`."""
    classes: int = 10
    pixels: int = 32
    """Height and width of its images."""
    width: float = 1.0
    """Multiplies the widths of the paper."""


def make(config: NetworkConfig) -> nn.Module:
    """A network with random weights from torch's generator.

    Raises:
        UserError: there is no network of that name.
    """
    if config.name not in NAMES:
        raise UserError(f"no network is named {config.name}: choose one of {', '.join(NAMES)}", "model")
    return NAMES[config.name](config)


def _cifar(depth: int) -> Callable[[NetworkConfig], nn.Module]:
    return lambda config: CifarResNet(depth, config.classes, max(1, round(16 * config.width)))


def _resnet(depths: tuple[int, ...], layer: str) -> Callable[[NetworkConfig], nn.Module]:
    def made(config: NetworkConfig) -> nn.Module:
        top = 1 if layer == "basic" else 4
        stem = round(64 * config.width)
        told = ResNetConfig(
            depths=list(depths),
            hidden_sizes=[stem * top * 2**n for n in range(4)],
            layer_type=layer,
            embedding_size=stem,
            num_labels=config.classes,
        )
        return ResNetForImageClassification(told)

    return made


def _mobilenet(config: NetworkConfig) -> nn.Module:
    small = config.pixels <= 64
    told = MobileNetV2Config(
        image_size=config.pixels,
        depth_multiplier=config.width,
        num_labels=config.classes,
        output_stride=8 if small else 32,
        classifier_dropout_prob=0.0 if small else 0.2,
        tf_padding=False,
    )
    module = steady(MobileNetV2ForImageClassification(told))
    if small:
        # For small images as is usual: no stride in the stem, and dilation has nothing to make up for.
        module.mobilenet_v2.conv_stem.first_conv.convolution.stride = (1, 1)
        for part in module.modules():
            if isinstance(part, nn.Conv2d) and part.dilation != (1, 1):
                part.dilation, part.padding = (1, 1), (1, 1)
    return module


def steady(module: nn.Module) -> nn.Module:
    """The same; its norms remember ten batches. transformers' MobileNetV2 has TensorFlow's number for that,
    which torch reads as the share of the newest batch: norms would be those of the last one alone."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 0.1
    return module


NAMES: dict[str, Callable[[NetworkConfig], nn.Module]] = {
    "resnet20": _cifar(20),
    "resnet56": _cifar(56),
    "resnet18": _resnet((2, 2, 2, 2), "basic"),
    "resnet50": _resnet((3, 4, 6, 3), "bottleneck"),
    "vgg-small": lambda config: VggSmall(config.classes, round(128 * config.width)),
    "mobilenetv2": _mobilenet,
}
"""Networks by name."""
