"""From samples and what the models say of them to what is trained on: the order of operations of PPO.

Shapes: B samples, R response positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import torch
from torch import Tensor

from plait.spec.errors import UserError
from plait.training.advantages import (
    GaeConfig,
    GroupConfig,
    discounted_returns,
    gae,
    group_relative,
    informative,
    leave_one_out,
    per_token,
    reinforce_plus_plus,
    reinforce_plus_plus_baseline,
)
from plait.training.batch import Padded, Sample
from plait.training.health import response_health
from plait.training.losses import Kl, kl_penalty
from plait.training.masked import masked_mean, whiten
from plait.training.mismatch import MismatchConfig, gap, weights
from plait.training.orders import Experience
from plait.training.rewards import ScoreConfig, final_scores, token_rewards


class Estimator(StrEnum):
    """Where advantages come from."""

    GAE = "gae"
    """The Critic (PPO)."""
    GRPO = "grpo"
    """Other samples of the same prompt."""
    RLOO = "rloo"
    """The same, the sample itself left out."""
    REINFORCE = "reinforce++"
    """Whitened returns."""
    REINFORCE_BASELINE = "reinforce++-baseline"
    """Distance from the group's mean, whitened."""


@dataclass(frozen=True)
class ExperienceConfig:
    """How rewards and advantages are made."""

    estimator: Estimator = Estimator.GAE
    """Where advantages come from."""
    gae: GaeConfig = field(default_factory=GaeConfig)
    """Of GAE; its gamma is that of REINFORCE++ as well."""
    group: GroupConfig = field(default_factory=GroupConfig)
    """Of GRPO."""
    score: ScoreConfig = field(default_factory=ScoreConfig)
    """What happens to scores first."""
    kl: Kl = Kl.K1
    """Estimator of the divergence in the reward."""
    whiten_advantages: bool = True
    """Of GAE: mean 0 and variance 1 over all tokens of the batch."""
    whiten_rewards: bool = False
    """Variance 1 over all tokens; the mean stays."""
    mismatch: MismatchConfig | None = None
    """Weights for tokens whose generator and trainer differ; None: 1."""
    drop_uninformative: bool = False
    """Leave out samples of groups whose scores are all the same (DAPO)."""


@dataclass(frozen=True)
class Judged:
    """A sample with all that was read of it; rows are as long as its response."""

    sample: Sample
    score: float
    """Of the reward model or function, as it was given."""
    old: tuple[float, ...] = ()
    """The Actor's log-probabilities; (): what the first step finds."""
    reference: tuple[float, ...] = ()
    values: tuple[float, ...] = ()


def experiences(
    judged: Sequence[Judged], config: ExperienceConfig, kl_coefficient: float
) -> tuple[list[Experience], dict[str, float]]:
    """What is trained on, in the order of the samples, and figures of the rollout.

    Args:
        kl_coefficient: weight of the divergence in the reward.

    Raises:
        UserError: a score is not finite, or nothing is left to be trained on.
    """
    raw_B, scores_B = _scores(judged, config)
    finished_B = torch.tensor([each.sample.finished for each in judged])
    mask_BR = Padded.of([each.sample for each in judged]).mask_BR
    old_BR = _rows([each.old for each in judged], mask_BR)
    reference_BR = (
        _rows([each.reference for each in judged], mask_BR)
        if judged[0].reference and judged[0].old
        else old_BR
    )
    values_BR = _rows([each.values for each in judged], mask_BR)
    kl_BR = kl_penalty(old_BR, reference_BR, config.kl)
    rewards_BR = token_rewards(scores_B, kl_BR, mask_BR, kl_coefficient)
    if config.whiten_rewards:
        rewards_BR = whiten(rewards_BR, mask_BR, shift_mean=False)
    groups_B = torch.tensor([each.sample.group for each in judged])
    advantages_BR, returns_BR = _advantages(rewards_BR, values_BR, scores_B, groups_B, mask_BR, config)
    weights_BR, figures = _compared(judged, old_BR, mask_BR, config)
    kept = teaching(judged, config)
    if not any(kept):
        raise UserError(
            "no group has samples of different scores, so nothing can be learned from this batch: raise "
            "rollout.samples or rollout.refills, or leave out drop_uninformative"
        )
    columns = (advantages_BR, returns_BR, weights_BR)
    made = [_experience(each, columns, b) for b, each in enumerate(judged) if kept[b]]
    figures |= {
        "score": raw_B.mean().item(),
        "reward": rewards_BR.sum(1).mean().item(),
        "kl": masked_mean(kl_BR, mask_BR).item(),
        "kl_response": (kl_BR.where(mask_BR, 0)).sum(1).mean().item(),
        "kept": sum(kept) / len(kept),
    }
    health = response_health(mask_BR.sum(1), finished_B)
    figures |= {
        "finished": health.finished,
        "tokens_p50": health.median_tokens,
        "tokens_p99": health.p99_tokens,
    }
    return made, figures


def teaching(judged: Sequence[Judged], config: ExperienceConfig) -> list[bool]:
    """Which samples are trained on; raises as `experiences`."""
    if not config.drop_uninformative:
        return [True] * len(judged)
    groups_B = torch.tensor([each.sample.group for each in judged])
    found: list[bool] = informative(_scores(judged, config)[1], groups_B).tolist()
    return found


def _scores(judged: Sequence[Judged], config: ExperienceConfig) -> tuple[Tensor, Tensor]:
    """As they were given, and by the rules."""
    raw_B = torch.tensor([each.score for each in judged], dtype=torch.float32)
    if not bool(raw_B.isfinite().all()):
        raise UserError(
            f"sample {int((~raw_B.isfinite()).nonzero()[0])} has a score that is not finite: mend the reward "
            "model or function"
        )
    finished_B = torch.tensor([each.sample.finished for each in judged])
    lengths_B = torch.tensor([len(each.sample.response) for each in judged])
    return raw_B, final_scores(raw_B, lengths_B, finished_B, config.score)


def _advantages(
    rewards_BR: Tensor,
    values_BR: Tensor,
    scores_B: Tensor,
    groups_B: Tensor,
    mask_BR: Tensor,
    config: ExperienceConfig,
) -> tuple[Tensor, Tensor]:
    returns_BR = torch.zeros_like(rewards_BR)
    match config.estimator:
        case Estimator.GAE:
            advantages_BR, returns_BR = gae(rewards_BR, values_BR, mask_BR, config.gae)
            if config.whiten_advantages:
                advantages_BR = whiten(advantages_BR, mask_BR)
            return advantages_BR, returns_BR
        case Estimator.GRPO:
            return per_token(group_relative(scores_B, groups_B, config.group), mask_BR), returns_BR
        case Estimator.RLOO:
            whole_B = discounted_returns(rewards_BR, mask_BR, 1.0)[:, 0]
            return per_token(leave_one_out(whole_B, groups_B), mask_BR), returns_BR
        case Estimator.REINFORCE:
            return reinforce_plus_plus(rewards_BR, mask_BR, config.gae.gamma), returns_BR
        case Estimator.REINFORCE_BASELINE:
            return reinforce_plus_plus_baseline(scores_B, groups_B, mask_BR), returns_BR


def _compared(
    judged: Sequence[Judged], old_BR: Tensor, mask_BR: Tensor, config: ExperienceConfig
) -> tuple[Tensor | None, dict[str, float]]:
    """Weights, and how far generator and trainer are apart."""
    if not all(each.sample.logprobs and each.old for each in judged):
        return None, {}
    drawn_BR = _rows([each.sample.logprobs for each in judged], mask_BR)
    apart = gap(old_BR, drawn_BR, mask_BR)
    figures = {"rollout_gap": apart.largest, "rollout_gap_mean": apart.mean, "rollout_kl": apart.kl}
    if config.mismatch is None:
        return None, figures
    weights_BR = weights(old_BR, drawn_BR, mask_BR, config.mismatch)
    return weights_BR, figures | {"rollout_weight": float(masked_mean(weights_BR, mask_BR))}


def _experience(judged: Judged, columns: tuple[Tensor, Tensor, Tensor | None], b: int) -> Experience:
    length = len(judged.sample.response)
    advantages, returns, weight = (
        () if column is None else tuple(column[b, :length].tolist()) for column in columns
    )
    reference, values = judged.reference, judged.values
    return Experience(judged.sample, judged.old, advantages, reference, weight, values, returns)


def _rows(rows: Sequence[Sequence[float]], mask_BR: Tensor) -> Tensor:
    stacked = torch.zeros(mask_BR.shape)
    for b, row in enumerate(rows):
        stacked[b, : len(row)] = torch.tensor(row)
    return stacked
