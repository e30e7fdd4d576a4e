"""From a loss per token to the loss of a global mini-batch, however it is cut into micro-batches.

Shapes: B samples, T response positions. What is divided by is counted over the whole mini-batch before it
starts, so the losses (and gradients) of its micro-batches, on whatever ranks, add up to those of the whole.
Ranks sum their gradients; who averages them multiplies by the number of ranks.
"""

from dataclasses import dataclass
from enum import StrEnum

from torch import Tensor

from plait.spec.errors import UserError
from plait.training.masked import masked_mean, masked_sum


class Mean(StrEnum):
    """What is averaged; the names are verl's."""

    TOKENS = "token-mean"
    """All tokens count the same (DAPO)."""
    SEQUENCES = "seq-mean-token-mean"
    """All samples count the same, a sample being the mean of its tokens (GRPO)."""
    SEQUENCE_SUMS = "seq-mean-token-sum"
    """A sample being the sum of its tokens."""
    SEQUENCE_SUMS_SCALED = "seq-mean-token-sum-norm"
    """The same, divided by a constant number of tokens (Dr. GRPO)."""


@dataclass(frozen=True)
class AggregateConfig:
    """How a mini-batch becomes one number."""

    mean: Mean = Mean.TOKENS
    """What is averaged."""
    scale_tokens: int | None = None
    """Of `SEQUENCE_SUMS_SCALED` and only of it: the constant, normally the longest response allowed."""

    def __post_init__(self) -> None:
        wanted = self.mean is Mean.SEQUENCE_SUMS_SCALED
        if wanted != (self.scale_tokens is not None) or (wanted and self.scale_tokens < 1):
            raise UserError(
                f"scale_tokens belongs to {Mean.SEQUENCE_SUMS_SCALED!r}, which needs it to be 1 or more; "
                f"it is {self.scale_tokens} with {self.mean!r}",
                "scale_tokens",
            )


@dataclass(frozen=True)
class Whole:
    """Size of a global mini-batch."""

    tokens: int
    """That the mask selects."""
    samples: int
    """With at least one such token."""

    @staticmethod
    def of(*masks_BT: Tensor) -> "Whole":
        """Of a mini-batch that consists of these parts."""
        tokens = sum(int(mask_BT.sum()) for mask_BT in masks_BT)
        return Whole(tokens, sum(int(mask_BT.any(1).sum()) for mask_BT in masks_BT))


def aggregate(loss_BT: Tensor, mask_BT: Tensor, whole: Whole, config: AggregateConfig) -> Tensor:
    """This part's share of the loss of the mini-batch `whole`: a scalar, 0 for an empty part."""
    if config.mean is Mean.TOKENS:
        return masked_sum(loss_BT, mask_BT) / max(whole.tokens, 1)
    if config.mean is Mean.SEQUENCES:
        return masked_mean(loss_BT, mask_BT, 1).sum() / max(whole.samples, 1)
    return masked_sum(loss_BT, mask_BT) / max(whole.samples, 1) / (config.scale_tokens or 1)
