"""From a score per sample to a reward per token.

Shapes: B samples, T response positions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from plait.spec.errors import UserError
from plait.training.responses import last_position


@dataclass(frozen=True)
class OverlongConfig:
    """DAPO's soft punishment of responses near the longest allowed (arXiv 2503.14476)."""

    max_tokens: int
    """The longest response allowed."""
    buffer_tokens: int
    """The punishment grows over this many last tokens."""
    factor: float = 1.0
    """What is taken off the score at `max_tokens`."""

    def __post_init__(self) -> None:
        if not 0 < self.buffer_tokens <= self.max_tokens:
            raise UserError(
                f"buffer_tokens must be in 1 .. max_tokens = {self.max_tokens}, not {self.buffer_tokens}",
                "buffer_tokens",
            )


@dataclass(frozen=True)
class ScoreConfig:
    """What happens to a score before it becomes a reward, in this order."""

    clip: float | None = None
    """Scores count up to this far from 0 (OpenRLHF: 10)."""
    missing_eos_penalty: float | None = None
    """Taken off the score of a response that did not end by itself (TRL)."""
    missing_eos_score: float | None = None
    """Takes the place of that score (arXiv 2403.17031 and earlier: -1). Not together with the penalty."""
    overlong: OverlongConfig | None = None
    """Taken off the scores of long responses."""

    def __post_init__(self) -> None:
        if self.missing_eos_penalty is not None and self.missing_eos_score is not None:
            raise UserError(
                "missing_eos_penalty and missing_eos_score exclude each other: remove one",
                "missing_eos_score",
            )


def final_scores(scores_B: Tensor, lengths_B: Tensor, finished_B: Tensor, config: ScoreConfig) -> Tensor:
    """Scores by the rules of `config`: scores_B. `finished_B`: the response ended with a stop token."""
    if config.clip is not None:
        scores_B = scores_B.clamp(-config.clip, config.clip)
    if config.missing_eos_penalty is not None:
        scores_B = torch.where(finished_B, scores_B, scores_B - config.missing_eos_penalty)
    if config.missing_eos_score is not None:
        scores_B = scores_B.masked_fill(~finished_B, config.missing_eos_score)
    return (
        scores_B if config.overlong is None else scores_B + overlong(lengths_B, config.overlong).to(scores_B)
    )


def overlong(lengths_B: Tensor, config: OverlongConfig) -> Tensor:
    """What is added to the scores of responses of so many tokens: 0, falling to -factor at `max_tokens`."""
    exceeding_B = lengths_B - (config.max_tokens - config.buffer_tokens)
    return -exceeding_B.clamp(min=0).double() / config.buffer_tokens * config.factor


def place_scores(scores_B: Tensor, mask_BT: Tensor) -> Tensor:
    """Each score at the last token of its sample, 0 elsewhere: rewards_BT."""
    rewards_BT = torch.zeros(mask_BT.shape, dtype=scores_B.dtype, device=scores_B.device)
    return rewards_BT.scatter(1, last_position(mask_BT).unsqueeze(1), scores_B.unsqueeze(1))


def token_rewards(scores_B: Tensor, kl_BT: Tensor, mask_BT: Tensor, kl_coefficient: float) -> Tensor:
    """Scores at the last tokens, and at each token -kl_coefficient x kl: rewards_BT, 0 outside the mask."""
    return place_scores(scores_B, mask_BT) - kl_coefficient * kl_BT.where(mask_BT, 0)
