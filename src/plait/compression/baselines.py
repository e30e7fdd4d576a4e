"""What the optimiser is held against, in the same harness: the same space, score and budgets.

Each returns a feasible policy and its score. Legend: D genes, N policies, K budgets, V levels.
"""

from collections.abc import Sequence

import numpy as np

from plait.compression.complexity import Table
from plait.compression.evolution import EvolutionConfig, evolve, fit_to
from plait.compression.optimiser import Budget, check, shares
from plait.compression.rounding import Score
from plait.compression.space import Floats, Ints, Space
from plait.spec.errors import UserError

Answer = tuple[Ints, float]
"""A policy (D) and its score."""


def uniform(space: Space, score: Score, budgets: Sequence[Budget]) -> Answer:
    """The best feasible policy whose genes of a knob all have one level."""
    check(space, budgets)
    index_ND = space.uniform()
    fits_ND = index_ND[(shares(budgets, space.z_of(index_ND)) <= 1).all(0)]
    return _best(score, fits_ND)


def random_near(
    space: Space, budgets: Sequence[Budget], count: int, rng: np.random.Generator, near: float = 0.9
) -> Ints:
    """Random policies that use between `near` and all of their tightest limit, where levels allow it.

    Levels are drawn evenly; then random genes go down while a limit is overstepped, up while there is room.
    """
    index_ND = fit_to(space, budgets, rng)(space.sample(rng, count))
    order_ND = np.concatenate([rng.random((count, len(space))).argsort(1) for _ in range(2)], 1)
    for gene_N in order_ND.T:
        raised_ND = index_ND.copy()
        raised_ND[np.arange(count), gene_N] += 1
        fits_N = raised_ND[np.arange(count), gene_N] < space.count_D[gene_N]
        raised_ND = np.minimum(raised_ND, space.count_D - 1)
        fits_N &= (shares(budgets, space.z_of(raised_ND)) <= 1).all(0)
        low_N = shares(budgets, space.z_of(index_ND)).max(0) < near
        index_ND = np.where((fits_N & low_N)[:, None], raised_ND, index_ND)
    return index_ND


def random_search(
    space: Space, score: Score, budgets: Sequence[Budget], calls: int, rng: np.random.Generator
) -> Answer:
    """The best of `calls` random policies near the limit."""
    check(space, budgets)
    return _best(score, random_near(space, budgets, calls, rng))


def evolution(
    space: Space,
    score: Score,
    budgets: Sequence[Budget],
    config: EvolutionConfig,
    rng: np.random.Generator,
) -> Answer:
    """The best of a feasible population after its generations."""
    check(space, budgets)
    fit = fit_to(space, budgets, rng)
    index_PD, score_P = evolve(space, score, fit, config, rng, space.sample(rng, config.population))
    return index_PD[0], float(score_P[0])


def knapsack(space: Space, gain_DV: Floats, budget: Budget, cells: int = 10_000) -> Ints:
    """The policy of largest total gain, by dynamic programming over a budget cut into `cells`.

    Exact up to the grid: costs are rounded up to cells, so the answer is always feasible, and it is the best
    policy whose rounded costs fit. `gain_DV` is padded like the cost's table.

    Raises:
        UserError: the cost is no table, or no policy fits.
    """
    cost = budget.cost
    if not isinstance(cost, Table):
        raise UserError("a dynamic programme needs an additive cost: give it a table", "budget")
    room = budget.limit - cost.base
    cells_DV = np.ceil(cost.cost_DV / room * cells - 1e-9).astype(np.int64) if room > 0 else None
    if cells_DV is None or cells_DV[:, 0].sum() > cells:
        raise UserError(
            f"no policy has {cost.name} below {budget.limit:g} {cost.unit}: ask for more", "budget"
        )
    best_C = np.zeros(cells + 1)
    level_DC = np.zeros((len(space), cells + 1), dtype=np.int64)
    for gene in range(len(space)):
        options = np.full((space.count_D[gene], cells + 1), -np.inf)
        for level, taken in enumerate(cells_DV[gene, : space.count_D[gene]]):
            if taken <= cells:
                options[level, taken:] = best_C[: cells + 1 - taken] + gain_DV[gene, level]
        level_DC[gene] = options.argmax(0)
        best_C = options.max(0)
    index_D, at = np.empty(len(space), dtype=np.int64), cells
    for gene in reversed(range(len(space))):
        index_D[gene] = level_DC[gene, at]
        at -= cells_DV[gene, index_D[gene]]
    return index_D


def additive_gains(space: Space, score: Score, base_D: Ints) -> Floats:
    """What each level of each gene changes by itself, all others as in `base`; padded with the last."""
    gain_DV = np.zeros(space.levels_DV.shape)
    whole = score(base_D[None])[0]
    for gene, count in enumerate(space.count_D):
        varied_VD = np.repeat(base_D[None], count, 0)
        varied_VD[:, gene] = np.arange(count)
        gain_DV[gene, :count] = score(varied_VD) - whole
        gain_DV[gene, count:] = gain_DV[gene, count - 1]
    return gain_DV


def _best(score: Score, index_ND: Ints) -> Answer:
    if not len(index_ND):
        raise UserError("no policy of this kind fits the budgets", "budget")
    score_N = score(index_ND)
    return index_ND[score_N.argmax()], float(score_N.max())
