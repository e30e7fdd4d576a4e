"""`best_policy`: for any budgets the best policy that a predictor knows of, in well under a second."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from plait.compression.optimiser import Budget, OptimiserConfig, Performance, ascend, check, shares, shrink
from plait.compression.rounding import Score, settle
from plait.compression.space import Floats, Ints, Space


@dataclass(frozen=True, slots=True)
class BestConfig:
    """How a policy is looked for."""

    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    finalists: int = 3
    """Ascents that are rounded, of those that promise most."""


@dataclass(frozen=True, slots=True)
class Found:
    """What was found for some budgets, best first."""

    index_ND: Ints
    """Feasible policies, no two alike; the first is the answer, the rest are for measuring."""
    mean_N: Floats
    std_N: Floats
    continuous: float
    """The best score, mean less kappa deviations, before rounding."""
    closest: float
    """The largest share of a limit that any iterate used."""


def best_policy(
    space: Space,
    performance: Performance,
    budgets: Sequence[Budget],
    config: BestConfig,
    rng: np.random.Generator,
    known_ND: Ints | None = None,
) -> Found:
    """Ascend from random policies, the uniform ones and those in `known` (measured ones), then round.

    Raises:
        UserError: a budget cannot be met; names the nearest one that can.
    """
    check(space, budgets)
    told = config.optimiser

    def score(index_ND: Ints) -> Floats:
        mean_N, std_N = performance.predict(space.z_of(index_ND))
        return mean_N - told.kappa * std_N

    start_BD = _starts(space, score, budgets, told.starts, rng, known_ND)
    ascent = ascend(space, performance, budgets, start_BD, told)
    mean_B, std_B = performance.predict(ascent.z_BD)
    promise_B = mean_B - told.kappa * std_B
    ends = [settle(space, score, budgets, ascent.z_BD[b]) for b in np.argsort(-promise_B)[: config.finalists]]
    ends.sort(key=lambda end: -end[1])
    index_ND = np.array(list(dict.fromkeys(tuple(index_D) for index_D, _ in ends)))
    mean_N, std_N = performance.predict(space.z_of(index_ND))
    return Found(index_ND, mean_N, std_N, float(promise_B.max()), ascent.closest)


def _starts(
    space: Space,
    score: Score,
    budgets: Sequence[Budget],
    count: int,
    rng: np.random.Generator,
    known_ND: Ints | None,
) -> Floats:
    """The best uniform policy, the best of the known ones (up to half of all), and random ones; all drawn
    inside the budgets."""
    groups = [(space.uniform(), 1), *([] if known_ND is None else [(known_ND, count // 2)])]
    first: list[Ints] = []
    for group_ND, most in groups:
        fits_ND = group_ND[(shares(budgets, space.z_of(group_ND)) <= 1).all(0)]
        if len(fits_ND):
            first += list(fits_ND[np.argsort(-score(fits_ND), kind="stable")[:most]])
    random_ND = space.sample(rng, count - len(first))
    return shrink(budgets, space.z_of(np.stack([*first, *random_ND])))
