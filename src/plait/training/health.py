"""What tells a run that goes well from one that does not.

Shapes: B samples, T response positions. All figures are means over the selected tokens unless they say
otherwise, and carry no gradient.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from plait.training.losses import PolicyLossConfig, ValueLossConfig, log_ratio
from plait.training.masked import Moments, masked_mean


@dataclass(frozen=True)
class PolicyHealth:
    """Of one policy update."""

    approx_kl: float
    """KL(old || new) by k2, as TRL reports it."""
    old_kl: float
    """KL(old || new) by k1, as verl reports it (`ppo_kl`)."""
    clip_fraction: float
    """Share of tokens whose clipped term was the larger."""
    dual_clip_fraction: float
    """Share of tokens with a negative advantage at the second bound."""
    ratio_mean: float
    """Exactly 1 in the first mini-batch after a rollout, or the log-probabilities are at fault."""
    ratio_variance: float
    """Unbiased."""
    ratio_largest: float
    """The largest of a token."""
    entropy: float
    """Nats a token."""


@dataclass(frozen=True)
class ValueHealth:
    """Of one critic update."""

    clip_fraction: float
    """Share of tokens whose clipped error was the larger."""
    explained_variance: float
    """1 - Var(returns - values) / Var(returns): 1 is perfect, 0 is a constant's; NaN if returns are equal."""


@dataclass(frozen=True)
class ResponseHealth:
    """Of one rollout."""

    finished: float
    """Share of responses that ended by themselves."""
    median_tokens: float
    """Length, P50."""
    p99_tokens: float
    """Length, P99."""


@torch.no_grad()
def policy_health(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    config: PolicyLossConfig,
    entropy_BT: Tensor,
) -> PolicyHealth:
    """Figures of a mini-batch from what `policy_loss` got."""
    plain_BT = logprobs_BT - old_logprobs_BT
    ratio_BT = log_ratio(logprobs_BT, old_logprobs_BT, mask_BT, config).exp()
    clipped_BT = ratio_BT.clamp(1 - config.clip_low, 1 + config.clip_high)
    beyond_BT = -advantages_BT * clipped_BT > -advantages_BT * ratio_BT
    bound = torch.inf if config.dual_clip is None else config.dual_clip
    bounded_BT = (advantages_BT < 0) & (ratio_BT.maximum(clipped_BT) > bound)
    moments = Moments.of(ratio_BT, mask_BT)
    return PolicyHealth(
        approx_kl=masked_mean(0.5 * plain_BT.square(), mask_BT).item(),
        old_kl=masked_mean(-plain_BT, mask_BT).item(),
        clip_fraction=masked_mean(beyond_BT.double(), mask_BT).item(),
        dual_clip_fraction=masked_mean(bounded_BT.double(), mask_BT).item(),
        ratio_mean=moments.mean,
        ratio_variance=moments.variance,
        ratio_largest=ratio_BT.where(mask_BT, 0).max().item(),
        entropy=masked_mean(entropy_BT, mask_BT).item(),
    )


@torch.no_grad()
def value_health(
    values_BT: Tensor, old_values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor, config: ValueLossConfig
) -> ValueHealth:
    """Figures of a mini-batch from what `value_loss` got."""
    fraction = 0.0
    if config.clip is not None:
        clipped_BT = values_BT.clamp(old_values_BT - config.clip, old_values_BT + config.clip)
        beyond_BT = (clipped_BT - returns_BT).square() > (values_BT - returns_BT).square()
        fraction = masked_mean(beyond_BT.double(), mask_BT).item()
    return ValueHealth(fraction, explained_variance(values_BT, returns_BT, mask_BT))


@torch.no_grad()
def explained_variance(values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns); NaN where all returns are equal."""
    total = Moments.of(returns_BT, mask_BT).variance
    return 1 - Moments.of(returns_BT - values_BT, mask_BT).variance / total if total else float("nan")


def response_health(lengths_B: Tensor, finished_B: Tensor) -> ResponseHealth:
    """Figures of a rollout. `lengths_B` in tokens."""
    quantiles = lengths_B.double().quantile(
        torch.tensor([0.5, 0.99], dtype=torch.float64, device=lengths_B.device)
    )
    return ResponseHealth(finished_B.double().mean().item(), *quantiles.tolist())
