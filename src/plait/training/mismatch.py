"""Weights for tokens that another program drew than the one that is trained.

Shapes: B samples, T response positions. Generator and trainer compute the same policy with different kernels
or precision; the ratio of their probabilities, bounded, makes up for it (truncated importance sampling).
"""

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from plait.spec.errors import UserError
from plait.training.masked import masked_mean, masked_sum

LOG_LIMIT = 20.0
"""Logarithms of weights count up to this far from 0."""


class Level(StrEnum):
    """Of what the two probabilities are compared."""

    TOKEN = "token"
    """Little variance, some bias."""
    SEQUENCE = "sequence"
    """The product over a sample's tokens: no bias, more variance."""


class Outside(StrEnum):
    """What becomes of a weight beyond its bounds."""

    TRUNCATE = "truncate"
    """It counts as the bound."""
    MASK = "mask"
    """It counts as 0: the token or sample is not trained on (IcePop)."""


@dataclass(frozen=True)
class MismatchConfig:
    """Bounds of the weights."""

    level: Level = Level.TOKEN
    """What is compared."""
    most: float = 2.0
    """Upper bound."""
    least: float = 0.0
    """Lower bound."""
    outside: Outside = Outside.TRUNCATE
    """What becomes of a weight beyond them."""

    def __post_init__(self) -> None:
        if not 0 <= self.least < self.most:
            raise UserError(f"bounds must be 0 <= least < most, not {self.least} and {self.most}", "least")


@dataclass(frozen=True)
class Gap:
    """How far trainer and generator are apart."""

    largest: float
    """Largest difference of a token's log-probability, in nats."""
    mean: float
    """Mean of the absolute differences."""
    kl: float
    """KL(generator || trainer) at a token, estimated by k3."""


@torch.no_grad()
def weights(trained_BT: Tensor, drawn_BT: Tensor, mask_BT: Tensor, config: MismatchConfig) -> Tensor:
    """Weights of the tokens' losses, 0 outside the mask: weights_BT.

    `trained_BT` are log-probabilities of the trainer before its first step, `drawn_BT` the generator's.
    """
    log_BT = (trained_BT - drawn_BT).where(mask_BT, 0)
    if config.level is Level.SEQUENCE:
        log_BT = masked_sum(log_BT, mask_BT, 1).unsqueeze(1).expand(mask_BT.shape)
    raw_BT = log_BT.clamp(-LOG_LIMIT, LOG_LIMIT).exp()
    if config.outside is Outside.TRUNCATE:
        return raw_BT.clamp(config.least, config.most).where(mask_BT, 0)
    return raw_BT.where(mask_BT & (raw_BT >= config.least) & (raw_BT <= config.most), 0)


@torch.no_grad()
def gap(trained_BT: Tensor, drawn_BT: Tensor, mask_BT: Tensor) -> Gap:
    """How far the two are apart; below 1e-5 where they share float32 code."""
    log_BT = (trained_BT - drawn_BT).where(mask_BT, 0)
    k3_BT = torch.expm1(log_BT) - log_BT
    largest, mean = log_BT.abs().max(), masked_mean(log_BT.abs(), mask_BT)
    return Gap(largest.item(), mean.item(), masked_mean(k3_BT, mask_BT).item())
