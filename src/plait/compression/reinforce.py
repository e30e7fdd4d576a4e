"""`reinforce`: HAQ's search (Wang et al., CVPR 2019), which every budget pays for anew: a baseline.

An actor chooses a level for one gene after another; levels are then lowered from the last gene backwards
until the budget holds, the policy is measured, and a tenth of its score above a base is every choice's
reward. Actor and critic learn from all choices so far (DDPG with gamma 1); noise falls from episode to
episode.
Legend: D genes, T traits of a gene, S what the actor sees, B choices of a batch.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from plait.compression.optimiser import Budget, shares
from plait.compression.space import Floats, Ints, Space


@dataclass(frozen=True, slots=True)
class ReinforceConfig:
    """HAQ's settings; widths and warm-up are smaller, for it has fewer episodes here."""

    episodes: int = 60
    warmup: int = 10
    """Episodes of random choices before anything is learnt."""
    width: int = 64
    """Of both hidden layers."""
    actor_rate: float = 1e-4
    critic_rate: float = 1e-3
    follow: float = 0.01
    """Share by which the target networks follow."""
    batch: int = 64
    noise: float = 0.5
    """Deviation of the noise on a choice in [0, 1] at the start."""
    decay: float = 0.99
    """Of the noise, each episode after the warm-up."""


def reinforce(
    space: Space,
    measure: Callable[[Ints], float],
    budgets: Sequence[Budget],
    traits_DT: Floats,
    config: ReinforceConfig,
    seed: int,
) -> list[tuple[Ints, float]]:
    """Every policy that was measured and its score, in order; all are feasible."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    agent = _Agent(traits_DT.shape[1] + 1, config)
    low_T, wide_T = traits_DT.min(0), np.ptp(traits_DT, axis=0)
    traits_DT = (traits_DT - low_T) / np.where(wide_T > 0, wide_T, 1)
    trail: list[tuple[Ints, float]] = []
    for episode in range(config.episodes):
        noise = config.noise * config.decay ** max(0, episode - config.warmup)
        states_DS, actions_D = _episode(agent, traits_DT, noise, rng, explore=episode < config.warmup)
        levels_D = np.minimum((actions_D * space.count_D).astype(np.int64), space.count_D - 1)
        index_D = _lowered(space, budgets, levels_D)
        score = measure(index_D)
        base = trail[0][1] if trail else score
        trail.append((index_D, score))
        agent.remember(states_DS, actions_D, 0.1 * (score - base))
        if episode >= config.warmup:
            for _ in range(len(space)):
                agent.learn(rng)
    return trail


def _episode(
    agent: "_Agent", traits_DT: Floats, noise: float, rng: np.random.Generator, *, explore: bool
) -> tuple[Floats, Floats]:
    """What was seen and chosen, gene after gene; a choice is seen by the next."""
    states, actions = [], [1.0]
    for traits_T in traits_DT:
        state_S = np.append(traits_T, actions[-1])
        chosen = rng.random() if explore else agent.choose(state_S) + noise * rng.normal()
        states.append(state_S)
        actions.append(float(np.clip(chosen, 0, 1)))
    return np.array(states), np.array(actions[1:])


def _lowered(space: Space, budgets: Sequence[Budget], index_D: Ints) -> Ints:
    """Levels lowered one by one, from the last gene backwards and over again, until every budget holds."""
    index_D, gene = index_D.copy(), len(space) - 1
    while (shares(budgets, space.z_of(index_D[None])) > 1).any():
        index_D[gene] = max(0, index_D[gene] - 1)
        gene = (gene - 1) % len(space)
    return index_D


class _Agent:
    """Actor, critic, their slow copies, and what they learn from."""

    def __init__(self, seen: int, config: ReinforceConfig) -> None:
        self.config = config
        self.actor = nn.Sequential(_body(seen, config.width), nn.Sigmoid())
        self.critic = _body(seen + 1, config.width)
        self.slow_actor, self.slow_critic = copy.deepcopy(self.actor), copy.deepcopy(self.critic)
        self.actor_adam = torch.optim.Adam(self.actor.parameters(), config.actor_rate)
        self.critic_adam = torch.optim.Adam(self.critic.parameters(), config.critic_rate)
        self.memory: list[tuple[Floats, float, float, Floats | None]] = []

    @torch.no_grad()
    def choose(self, state_S: Floats) -> float:
        """A choice in [0, 1]."""
        return float(self.actor(torch.from_numpy(state_S).float()))

    def remember(self, states_DS: Floats, actions_D: Floats, reward: float) -> None:
        """An episode; what follows its last choice is nothing."""
        after = [*states_DS[1:], None]
        self.memory += list(zip(states_DS, actions_D, [reward] * len(actions_D), after, strict=True))

    def learn(self, rng: np.random.Generator) -> None:
        """One step of both, from choices drawn at random."""
        drawn = [self.memory[n] for n in rng.integers(len(self.memory), size=self.config.batch)]
        state_BS = torch.tensor(np.stack([seen for seen, _, _, _ in drawn])).float()
        action_B1 = torch.tensor([[action] for _, action, _, _ in drawn]).float()
        reward_B1 = torch.tensor([[reward] for _, _, reward, _ in drawn]).float()
        goes_on_B1 = torch.tensor([[float(after is not None)] for _, _, _, after in drawn])
        after_BS = torch.tensor(np.stack([s if after is None else after for s, _, _, after in drawn])).float()
        with torch.no_grad():
            next_B1 = self.slow_critic(torch.cat([after_BS, self.slow_actor(after_BS)], 1))
            goal_B1 = reward_B1 + goes_on_B1 * next_B1
        off_B1 = self.critic(torch.cat([state_BS, action_B1], 1)) - goal_B1
        _descend(self.critic_adam, off_B1.square().mean())
        _descend(self.actor_adam, -self.critic(torch.cat([state_BS, self.actor(state_BS)], 1)).mean())
        for slow, fast in ((self.slow_actor, self.actor), (self.slow_critic, self.critic)):
            for old, new in zip(slow.parameters(), fast.parameters(), strict=True):
                old.data.lerp_(new.data, self.config.follow)


def _body(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)
    )


def _descend(adam: torch.optim.Adam, loss: Tensor) -> None:
    adam.zero_grad()
    loss.backward()
    adam.step()
