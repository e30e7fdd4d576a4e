"""Training and measuring of image classifiers: the same loop for the reference and for what is compressed.

Legend: B images of a batch, N images, C channels, H height, W width.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from plait.compression.tasks.images import Images, floats
from plait.compression.tasks.networks import logits
from plait.spec.errors import UserError


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How a network is trained."""

    images: int
    """Images seen, repeats counted; 0 is no training."""
    rate: float = 0.02
    """Learning rate at the start; it falls to zero along a cosine."""
    batch: int = 128
    momentum: float = 0.9
    decay: float = 5e-4
    """Weight decay; of weights alone, not of norms, biases and steps."""
    shift: int = 2
    """Pixels by which an image is moved at most, to either side; half of all are mirrored."""
    teach: float = 0.0
    """Share of the loss that is the divergence from a teacher's answers; the rest is cross-entropy."""
    clip: float = 0.0
    """Largest norm of the gradient; 0 leaves it as it is."""
    warmth: float = 4.0
    """Temperature of both in that divergence."""


LossOf = Callable[[Tensor, torch.Generator], Tensor]
"""The loss of some examples, by number; changes to them are drawn from the generator."""


def descend(module: nn.Module, examples: int, loss_of: LossOf, config: TrainConfig, seed: int) -> None:
    """Train in place; examples, their order and changes depend on `seed` alone.

    Raises:
        UserError: the loss stopped being a number.
    """
    generator = torch.Generator().manual_seed(seed)
    steps = math.ceil(config.images / config.batch)
    optimiser = torch.optim.SGD(_groups(module, config.decay), config.rate, config.momentum, nesterov=True)
    module.train()
    order = torch.empty(0, dtype=torch.int64)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = config.rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        while len(order) < config.batch:
            order = torch.cat([order, torch.randperm(examples, generator=generator)])
        chosen, order = order[: config.batch], order[config.batch :]
        loss = loss_of(chosen, generator)
        optimiser.zero_grad()
        loss.backward()
        if config.clip:
            nn.utils.clip_grad_norm_(module.parameters(), config.clip)
        optimiser.step()
        if (step % 20 == 19 or step == steps - 1) and not math.isfinite(loss.item()):
            raise UserError("the loss is no number any more: train with a smaller rate", "rate")
    module.eval()


def train(
    module: nn.Module, data: Images, config: TrainConfig, seed: int, teacher: nn.Module | None = None
) -> None:
    """Train a classifier in place, with a teacher's answers if there is one."""

    def loss_of(chosen: Tensor, generator: torch.Generator) -> Tensor:
        images_BCHW = changed(data.pixels_NCHW[chosen], config.shift, generator)
        return _loss(module, images_BCHW, data.classes_N[chosen], config, teacher)

    descend(module, len(data), loss_of, config, seed)


@torch.no_grad()
def evaluate(module: nn.Module, data: Images, batch: int = 500) -> tuple[float, float]:
    """Accuracy (a share) and mean cross-entropy (nats)."""
    module.eval()
    right, loss = 0, 0.0
    for start in range(0, len(data), batch):
        part = data.part(start, batch)
        answer_BC = logits(module, floats(part.pixels_NCHW))
        right += int((answer_BC.argmax(1) == part.classes_N).sum())
        loss += float(nn.functional.cross_entropy(answer_BC, part.classes_N, reduction="sum"))
    return right / len(data), loss / len(data)


def changed(pixels_BCHW: Tensor, shift: int, generator: torch.Generator) -> Tensor:
    """Images as floats, each moved by up to `shift` pixels and mirrored or not."""
    count, _, height, width = pixels_BCHW.shape
    padded = nn.functional.pad(floats(pixels_BCHW), [shift] * 4)
    top, left = torch.randint(0, 2 * shift + 1, (2, count), generator=generator)
    flip = torch.rand(count, generator=generator) < 0.5
    rows = top[:, None] + torch.arange(height)
    across = torch.arange(width).expand(count, -1)
    columns = left[:, None] + torch.where(flip[:, None], across.flip(1), across)
    every = torch.arange(count)[:, None, None]
    return (
        padded.permute(0, 2, 3, 1)[every, rows[:, :, None], columns[:, None, :]]
        .permute(0, 3, 1, 2)
        .contiguous()
    )


def _groups(module: nn.Module, decay: float) -> list[dict[str, object]]:
    """Weights decay; norms, biases and quantisers' steps do not."""
    named = list(module.named_parameters())
    heavy = [p for name, p in named if p.dim() > 1 and not name.endswith("_step")]
    light = [p for name, p in named if p.dim() <= 1 or name.endswith("_step")]
    return [{"params": heavy, "weight_decay": decay}, {"params": light, "weight_decay": 0.0}]


def _loss(
    module: nn.Module, images_BCHW: Tensor, classes_B: Tensor, config: TrainConfig, teacher: nn.Module | None
) -> Tensor:
    answer_BC = logits(module, images_BCHW)
    loss = nn.functional.cross_entropy(answer_BC, classes_B)
    if teacher is None or not config.teach:
        return loss
    with torch.no_grad():
        taught_BC = (logits(teacher, images_BCHW) / config.warmth).softmax(1)
    mine_BC = (answer_BC / config.warmth).log_softmax(1)
    apart = nn.functional.kl_div(mine_BC, taught_BC, reduction="batchmean") * config.warmth**2
    return config.teach * apart + (1 - config.teach) * loss
