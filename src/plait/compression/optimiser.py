"""`maximise`: the policy of highest predicted performance within every budget, by gradient ascent.

Ascended is J(z) = (mean(z) - kappa * std(z)) / spread + heat * sum over k of log(1 - cost_k(z) / limit_k).
The second part is a log barrier for each budget. Its heat falls from 1 to below the labels' noise: iterates
slide along the limits instead of stopping at them. Steps adapt and have momentum; one that would leave the
feasible region is halved until it does not, so every iterate is feasible and the search may be ended at any
time. Many starts run as one batch. The trust region is one more barrier: on the predictor's own deviation.
Legend: B starts, D genes, K budgets.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from plait.compression.adam import Adam
from plait.compression.complexity import Cost
from plait.compression.predictor import Slopes
from plait.compression.space import Floats, Space
from plait.spec.errors import UserError

WITHIN = 0.9999
"""Share of a limit that iterates may use."""


class Performance(Protocol):
    """What is maximised; `Predictor` is one."""

    spread: float

    def predict(self, z_BD: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation at z."""

    def slopes(self, z_BD: Floats) -> Slopes:
        """The same with derivatives by z."""


@dataclass(frozen=True, slots=True)
class Budget:
    """A cost and the most of it that a policy may have."""

    cost: Cost
    limit: float
    """In the cost's unit."""


@dataclass(frozen=True, slots=True)
class OptimiserConfig:
    """How the ascent goes. The switches are for ablations."""

    kappa: float = 0.5
    """Standard deviations that are taken off the mean."""
    starts: int = 8
    """Ascents in one batch."""
    steps: int = 60
    """Steps of each."""
    rate: float = 0.03
    """Size of a step, as a share of a gene's range."""
    momentum: float = 0.9
    """Decay of the first moment; 0 is no momentum."""
    barrier: bool = True
    """Without it an ascent ends where it first meets a limit."""
    cooling: float = 0.9
    """The barrier's heat falls by this factor each step, from 1."""
    coldest: float = 1e-3
    """Lowest heat, in spreads of the labels."""
    straight_through: float = 0.0
    """Share of the steps, the last ones, in which the gradient is taken at the nearest levels."""
    trust: float | None = None
    """Largest deviation of the prediction, in spreads of the labels; None: kappa alone holds it down."""
    halvings: int = 12
    """Times that a step is halved before it is not taken."""


@dataclass(frozen=True, slots=True)
class Ascent:
    """Where the starts came to."""

    z_BD: Floats
    closest: float
    """The largest share of any limit that any iterate of any start used."""


def shares(budgets: Sequence[Budget], z_BD: Floats) -> Floats:
    """What is used of each limit (K, B); a policy is feasible when none is above 1."""
    return np.stack([budget.cost(z_BD)[0] / budget.limit for budget in budgets])


def check(space: Space, budgets: Sequence[Budget]) -> None:
    """Raises UserError, naming the nearest budget, where even the most compressed policy is over."""
    used_K = shares(budgets, np.zeros((1, len(space))))[:, 0]
    for budget, used in zip(budgets, used_K, strict=True):
        if used >= 1:
            least = used * budget.limit
            raise UserError(
                f"no policy has {budget.cost.name} below {budget.limit:g} {budget.cost.unit}: "
                f"the most compressed one has {least:.4g}; ask for more than that",
                "budget",
            )


def shrink(budgets: Sequence[Budget], z_BD: Floats, share: float = 0.9) -> Floats:
    """Each z drawn towards the most compressed policy until it uses at most `share` of every limit.

    Costs grow with every coordinate, so bisection finds how far. Where not even that policy is below the
    share, it may use more, up to halfway to the limit.
    """
    least_K = shares(budgets, np.zeros((1, z_BD.shape[1])))
    allowed_K = np.maximum(share, (1 + least_K) / 2)
    low_B, high_B = np.zeros(len(z_BD)), np.ones(len(z_BD))
    fits_B = (shares(budgets, z_BD) <= allowed_K).all(0)
    for _ in range(20):
        middle_B = (low_B + high_B) / 2
        good_B = (shares(budgets, z_BD * middle_B[:, None]) <= allowed_K).all(0)
        low_B, high_B = np.where(good_B, middle_B, low_B), np.where(good_B, high_B, middle_B)
    return np.where(fits_B[:, None], z_BD, z_BD * low_B[:, None])


def ascend(
    space: Space,
    performance: Performance,
    budgets: Sequence[Budget],
    start_BD: Floats,
    config: OptimiserConfig,
) -> Ascent:
    """Ascend from feasible starts; every iterate stays feasible."""
    z_BD, adam = start_BD, Adam(config.rate, config.momentum)
    closest, heat = float(shares(budgets, z_BD).max()), 1.0
    moving_B = np.ones(len(z_BD), dtype=bool)
    late = config.steps * (1 - config.straight_through)
    for step in range(config.steps):
        at_BD = space.rounded(z_BD) if step >= late else z_BD
        gradient_BD = _gradient(performance, budgets, z_BD, at_BD, heat, config)
        move_BD = -adam.step(-gradient_BD) * moving_B[:, None]
        z_BD, moved_B, used = _within(budgets, z_BD, move_BD, config)
        closest, heat = max(closest, used), max(heat * config.cooling, config.coldest)
        if not config.barrier:
            moving_B &= moved_B
    return Ascent(z_BD, closest)


def _gradient(
    performance: Performance,
    budgets: Sequence[Budget],
    z_BD: Floats,
    at_BD: Floats,
    heat: float,
    config: OptimiserConfig,
) -> Floats:
    """Of J: performance at `at`, barriers at z."""
    found = performance.slopes(at_BD)
    gradient_BD = (found.mean_BD - config.kappa * found.std_BD) / performance.spread
    if config.trust is not None:
        # Beyond the region, where a start may be, the barrier's form would push outwards: pull firmly.
        room_B = np.maximum(config.trust - found.std_B / performance.spread, 1e-2 * config.trust)
        gradient_BD -= heat * found.std_BD / performance.spread / room_B[:, None]
    if config.barrier:
        for budget in budgets:
            cost_B, cost_BD = budget.cost(z_BD)
            gradient_BD -= heat * cost_BD / (budget.limit - cost_B)[:, None]
    return gradient_BD


def _within(
    budgets: Sequence[Budget], z_BD: Floats, move_BD: Floats, config: OptimiserConfig
) -> tuple[Floats, NDArray[np.bool_], float]:
    """The moves that stay feasible, halved where needed; who moved whole; the largest share used."""
    length_B, whole_B = np.ones(len(z_BD)), np.ones(len(z_BD), dtype=bool)
    for halving in range(config.halvings + 1):
        next_BD = np.clip(z_BD + length_B[:, None] * move_BD, 0, 1)
        used_KB = shares(budgets, next_BD)
        over_B = (used_KB >= WITHIN).any(0)
        if not over_B.any():
            break
        whole_B &= ~over_B
        last = halving >= config.halvings - 1 or not config.barrier
        length_B = np.where(over_B, 0.0 if last else length_B / 2, length_B)
    return next_BD, whole_B, float(used_KB.max())
