"""How much better a token or a sample was than expected.

Shapes: B samples, T response positions; `groups_B` numbers the prompt of each sample. Nothing here is
differentiated. Positions outside a mask (padding, and observations in the middle of a response) are skipped:
they get 0 and do not come between their neighbours.
"""

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from plait.spec.errors import UserError
from plait.training.masked import Moments, whiten


@dataclass(frozen=True)
class GaeConfig:
    """How far ahead rewards count."""

    gamma: float = 1.0
    """Discount of one token, in (0, 1]."""
    lam: float = 0.95
    """0: trust the critic after one token; 1: the rewards alone. Between 0 and 1."""

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1:
            raise UserError(f"gamma must be above 0 and at most 1, not {self.gamma}", "gamma")
        if not 0 <= self.lam <= 1:
            raise UserError(f"lam must be between 0 and 1, not {self.lam}", "lam")


class Scale(StrEnum):
    """What a sample's distance from its group's mean is divided by."""

    GROUP = "group"
    """Standard deviation of its group (GRPO)."""
    BATCH = "batch"
    """Standard deviation of all scores."""
    NONE = "none"
    """Nothing (Dr. GRPO)."""


@dataclass(frozen=True)
class GroupConfig:
    """Advantages relative to other samples of the same prompt."""

    scale: Scale = Scale.GROUP
    """What distances are divided by."""
    epsilon: float = 1e-6
    """Added to the standard deviation: 1e-6 in verl, 1e-4 in TRL."""


@torch.no_grad()
def gae(rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, config: GaeConfig) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates (Schulman et al., arXiv 1506.02438) and returns, not whitened.

    `values_BT` holds the critic's value of the state before each token; after the last one it is 0.
    Returns (advantages_BT, returns_BT), both 0 outside the mask.
    """
    advantages_BT = torch.zeros_like(rewards_BT)
    advantage_B, next_value_B = torch.zeros_like(rewards_BT[:, 0]), torch.zeros_like(values_BT[:, 0])
    for t in reversed(range(rewards_BT.shape[1])):
        here_B = mask_BT[:, t]
        delta_B = rewards_BT[:, t] + config.gamma * next_value_B - values_BT[:, t]
        advantage_B = torch.where(here_B, delta_B + config.gamma * config.lam * advantage_B, advantage_B)
        next_value_B = torch.where(here_B, values_BT[:, t], next_value_B)
        advantages_BT[:, t] = advantage_B
    return advantages_BT.where(mask_BT, 0), (advantages_BT + values_BT).where(mask_BT, 0)


@torch.no_grad()
def discounted_returns(rewards_BT: Tensor, mask_BT: Tensor, gamma: float) -> Tensor:
    """Discounted sum of a token's reward and all later ones; 0 outside the mask."""
    returns_BT = torch.zeros_like(rewards_BT)
    return_B = torch.zeros_like(rewards_BT[:, 0])
    for t in reversed(range(rewards_BT.shape[1])):
        return_B = torch.where(mask_BT[:, t], rewards_BT[:, t] + gamma * return_B, return_B)
        returns_BT[:, t] = return_B
    return returns_BT.where(mask_BT, 0)


def reinforce_plus_plus(rewards_BT: Tensor, mask_BT: Tensor, gamma: float) -> Tensor:
    """Discounted returns, whitened over the batch (REINFORCE++, arXiv 2501.03262)."""
    return whiten(discounted_returns(rewards_BT, mask_BT, gamma), mask_BT)


def reinforce_plus_plus_baseline(scores_B: Tensor, groups_B: Tensor, mask_BT: Tensor) -> Tensor:
    """Scores less their group's mean, whitened over the tokens of the batch (REINFORCE++-baseline)."""
    return whiten(per_token(group_relative(scores_B, groups_B, GroupConfig(Scale.NONE)), mask_BT), mask_BT)


@torch.no_grad()
def group_relative(scores_B: Tensor, groups_B: Tensor, config: GroupConfig) -> Tensor:
    """Distance of each score from the mean of its group (GRPO, arXiv 2402.03300), scaled; advantages_B.

    A sample alone in its group has nothing to be compared with and gets 0.
    """
    place_B, count_G = _groups(groups_B)
    mean_G = _sums(scores_B, place_B, count_G) / count_G
    apart_B = scores_B - mean_G[place_B]
    if config.scale is Scale.NONE:
        return apart_B
    if config.scale is Scale.BATCH:
        every_B = torch.ones_like(scores_B, dtype=torch.bool)
        return apart_B / (Moments.of(scores_B, every_B).variance ** 0.5 + config.epsilon)
    variance_G = _sums(apart_B.square(), place_B, count_G) / (count_G - 1).clamp(min=1)
    return apart_B / (variance_G.sqrt()[place_B] + config.epsilon)


@torch.no_grad()
def leave_one_out(scores_B: Tensor, groups_B: Tensor) -> Tensor:
    """Each score less the mean of its group's others (RLOO, arXiv 2402.14740); 0 where there is none."""
    place_B, count_G = _groups(groups_B)
    others_B = _sums(scores_B, place_B, count_G)[place_B] - scores_B
    count_B = count_G[place_B]
    return (scores_B - others_B / (count_B - 1).clamp(min=1)).where(count_B > 1, 0)


@torch.no_grad()
def against_greedy(rewards_BT: Tensor, greedy_B: Tensor, mask_BT: Tensor) -> Tensor:
    """Returns less the score of the greedy response to the same prompt (ReMax, arXiv 2310.10505)."""
    return (discounted_returns(rewards_BT, mask_BT, 1.0) - greedy_B.unsqueeze(1)).where(mask_BT, 0)


def per_token(advantages_B: Tensor, mask_BT: Tensor) -> Tensor:
    """A sample's advantage at each of its tokens, 0 elsewhere."""
    return advantages_B.unsqueeze(1).expand(mask_BT.shape).where(mask_BT, 0)


def informative(scores_B: Tensor, groups_B: Tensor) -> Tensor:
    """True where a sample's group has different scores; the rest teaches nothing (DAPO, arXiv 2503.14476)."""
    place_B, count_G = _groups(groups_B)
    highest_G = torch.full_like(count_G, -torch.inf, dtype=scores_B.dtype)
    highest_G.scatter_reduce_(0, place_B, scores_B, "amax")
    lowest_G = torch.full_like(highest_G, torch.inf).scatter_reduce_(0, place_B, scores_B, "amin")
    return (highest_G > lowest_G)[place_B]


def _groups(groups_B: Tensor) -> tuple[Tensor, Tensor]:
    """Number of each sample's group, counted from 0, and the size of each group."""
    _, place_B, count_G = groups_B.unique(return_inverse=True, return_counts=True)
    return place_B, count_G


def _sums(values_B: Tensor, place_B: Tensor, count_G: Tensor) -> Tensor:
    return torch.zeros_like(count_G, dtype=values_B.dtype).index_add_(0, place_B, values_B)
