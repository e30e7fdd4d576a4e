"""Means, variances and whitening over the tokens that a mask selects.

Shapes: B samples, T response positions. Masks are boolean.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, float64

WHITENING_FLOOR = 1e-8
"""Added to a variance before its root is divided by, as TRL, verl and OpenRLHF do."""


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations: those of parts merge into those of the whole."""

    count: int
    mean: float
    deviation: float
    """Sum over the values of the square of their distance from the mean."""

    @staticmethod
    def of(values_BT: Tensor, mask_BT: Tensor) -> "Moments":
        """Of the selected values, in float64."""
        chosen = values_BT.detach()[mask_BT].to(float64)
        if not chosen.numel():
            return Moments(0, 0.0, 0.0)
        mean = chosen.mean()
        return Moments(chosen.numel(), mean.item(), (chosen - mean).square().sum().item())

    @staticmethod
    def merge(parts: Iterable["Moments"]) -> "Moments":
        """Of the union: the shards of a batch are whitened alike (Chan, Golub and LeVeque, 1979)."""
        count, mean, deviation = 0, 0.0, 0.0
        for part in parts:
            if not part.count:
                continue
            total, apart = count + part.count, part.mean - mean
            deviation += part.deviation + apart * apart * count * part.count / total
            mean += apart * part.count / total
            count = total
        return Moments(count, mean, deviation)

    @property
    def variance(self) -> float:
        """Unbiased; 0 for fewer than two values."""
        return self.deviation / (self.count - 1) if self.count > 1 else 0.0


def masked_sum(values_BT: Tensor, mask_BT: Tensor, dim: int | None = None) -> Tensor:
    """Sum of the selected values: a scalar, or with `dim` along that dimension."""
    return values_BT.where(mask_BT, 0).sum() if dim is None else values_BT.where(mask_BT, 0).sum(dim)


def masked_mean(values_BT: Tensor, mask_BT: Tensor, dim: int | None = None) -> Tensor:
    """Mean of the selected values, 0 where none is selected."""
    count = mask_BT.sum() if dim is None else mask_BT.sum(dim)
    return masked_sum(values_BT, mask_BT, dim) / count.clamp(min=1)


def whiten(
    values_BT: Tensor, mask_BT: Tensor, *, shift_mean: bool = True, moments: Moments | None = None
) -> Tensor:
    """The selected values with variance 1, and mean 0 unless `shift_mean` is False; 0 elsewhere.

    `moments` are those of the whole batch where `values_BT` is one shard of it. No gradient flows into them.
    """
    found = moments or Moments.of(values_BT, mask_BT)
    white_BT = (values_BT - found.mean) * (found.variance + WHITENING_FLOOR) ** -0.5
    return (white_BT if shift_mean else white_BT + found.mean).where(mask_BT, 0)
