"""What the Actor and the Critic minimise, per token; `aggregate` makes one number of it.

Shapes: B samples, T response positions. Gradients flow into `logprobs_BT` and `values_BT`. What stands out of
the mask must be finite, or its gradient is not 0 but NaN; `aggregate` leaves it out.
"""

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from plait.spec.errors import UserError
from plait.training.masked import masked_mean


class Ratio(StrEnum):
    """Of what the probability under the new and the old policy is compared."""

    TOKEN = "token"
    SEQUENCE = "sequence"
    """Geometric mean over a sample's tokens (GSPO, arXiv 2507.18071); gradients stay those of each token."""


@dataclass(frozen=True)
class PolicyLossConfig:
    """PPO's clipped objective."""

    clip_low: float = 0.2
    """The ratio counts from 1 - clip_low."""
    clip_high: float = 0.2
    """The ratio counts up to 1 + clip_high; above clip_low in DAPO ("clip higher", 0.28)."""
    dual_clip: float | None = None
    """If the advantage is negative, the ratio counts up to this (arXiv 1912.09729; 3.0 in verl)."""
    ratio: Ratio = Ratio.TOKEN
    """What is compared."""
    log_ratio_limit: float = 20.0
    """Logarithms of ratios count up to this far from 0, so that none overflows."""

    def __post_init__(self) -> None:
        if not 0 <= self.clip_low < 1 or self.clip_high < 0:
            raise UserError(
                f"clip_low must be in [0, 1) and clip_high >= 0, not {self.clip_low} and {self.clip_high}",
                "clip_low",
            )
        if self.dual_clip is not None and self.dual_clip <= 1 + self.clip_high:
            raise UserError(
                f"dual_clip must be above 1 + clip_high = {1 + self.clip_high}, not {self.dual_clip}",
                "dual_clip",
            )


@dataclass(frozen=True)
class ValueLossConfig:
    """The Critic's squared error."""

    clip: float | None = 0.2
    """A value counts up to this far from what it was at rollout; None: as far as it likes."""


class Kl(StrEnum):
    """Estimators of KL(policy || reference) from one drawn token; d is logprob less reference logprob."""

    K1 = "k1"
    """d: unbiased, of either sign."""
    K2 = "k2"
    """d^2 / 2: biased; its gradient is the unbiased one."""
    K3 = "k3"
    """exp(-d) - 1 + d: unbiased, never negative (joschu.net/blog/kl-approx.html)."""
    ABS = "abs"
    """|d|."""
    LOW_VARIANCE = "low_var_kl"
    """K3, at most 10: what verl computes under both names."""


def log_ratio(
    logprobs_BT: Tensor, old_logprobs_BT: Tensor, mask_BT: Tensor, config: PolicyLossConfig
) -> Tensor:
    """Logarithm of the ratio that the policy loss uses, log_ratio_BT."""
    difference_BT = (logprobs_BT - old_logprobs_BT).where(mask_BT, 0)
    if config.ratio is Ratio.SEQUENCE:
        mean_B = masked_mean(difference_BT.detach(), mask_BT, 1)
        difference_BT = logprobs_BT - logprobs_BT.detach() + mean_B.unsqueeze(1)
    return difference_BT.clamp(-config.log_ratio_limit, config.log_ratio_limit)


def policy_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    config: PolicyLossConfig,
    weights_BT: Tensor | None = None,
) -> Tensor:
    """The clipped surrogate of PPO (arXiv 1707.06347), negated: loss_BT.

    `weights_BT` corrects for tokens that another program drew (`mismatch.weights`).
    """
    ratio_BT = log_ratio(logprobs_BT, old_logprobs_BT, mask_BT, config).exp()
    clipped_BT = ratio_BT.clamp(1 - config.clip_low, 1 + config.clip_high)
    loss_BT = torch.maximum(-advantages_BT * ratio_BT, -advantages_BT * clipped_BT)
    if config.dual_clip is not None:
        bounded_BT = torch.minimum(loss_BT, -advantages_BT * config.dual_clip)
        loss_BT = torch.where(advantages_BT < 0, bounded_BT, loss_BT)
    return loss_BT if weights_BT is None else loss_BT * weights_BT


def value_loss(
    values_BT: Tensor, old_values_BT: Tensor, returns_BT: Tensor, config: ValueLossConfig
) -> Tensor:
    """Half the squared distance from the returns, or that of the clipped value if it is larger: loss_BT."""
    loss_BT = (values_BT - returns_BT).square()
    if config.clip is not None:
        clipped_BT = values_BT.clamp(old_values_BT - config.clip, old_values_BT + config.clip)
        loss_BT = torch.maximum(loss_BT, (clipped_BT - returns_BT).square())
    return 0.5 * loss_BT


def kl_penalty(logprobs_BT: Tensor, reference_BT: Tensor, kind: Kl, *, k2_gradient: bool = False) -> Tensor:
    """Estimate of the divergence from the reference at each token: kl_BT.

    With `k2_gradient` its gradient is that of K2, the only estimator whose expected gradient is that of the
    divergence; its value stays what `kind` says (verl's "+").
    """
    distance_BT = logprobs_BT - reference_BT
    if k2_gradient:
        slope_BT = 0.5 * distance_BT.square()
        return slope_BT - slope_BT.detach() + _estimate(distance_BT.detach(), kind)
    return _estimate(distance_BT, kind)


def _estimate(distance_BT: Tensor, kind: Kl) -> Tensor:
    match kind:
        case Kl.K1:
            return distance_BT
        case Kl.K2:
            return 0.5 * distance_BT.square()
        case Kl.ABS:
            return distance_BT.abs()
        case Kl.K3 | Kl.LOW_VARIANCE:
            bounded_BT = distance_BT.clamp(-20, 20)
            k3_BT = torch.expm1(-bounded_BT) + bounded_BT
            return k3_BT.clamp(max=10) if kind is Kl.LOW_VARIANCE else k3_BT
