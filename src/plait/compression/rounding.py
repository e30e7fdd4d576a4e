"""From a continuous policy to levels: round, repair what went over a budget, fill what is left, swap.

Legend: D genes, N candidates, K budgets.
"""

from collections.abc import Callable, Sequence

import numpy as np

from plait.compression.optimiser import Budget, shares
from plait.compression.space import Floats, Ints, Space

Score = Callable[[Ints], Floats]
"""Of discrete policies (N, D) how good each is (N); higher is better."""
PAIRS = 32
"""Swaps that are scored in each round, of those that promise most."""


def settle(
    space: Space, score: Score, budgets: Sequence[Budget], z_D: Floats, rounds: int = 200
) -> tuple[Ints, float]:
    """A feasible discrete policy near z that no single change improves, and its score."""
    index_D = repair(space, score, budgets, space.index_of(z_D))
    value = float(score(index_D[None])[0])
    for _ in range(rounds):
        better_ND = _feasible(space, budgets, space.neighbours(index_D, up=True))
        found = _best(score, better_ND, value) or _best(score, _swaps(space, score, budgets, index_D), value)
        if found is None:
            break
        index_D, value = found
    return index_D, value


def repair(space: Space, score: Score, budgets: Sequence[Budget], index_D: Ints) -> Ints:
    """Levels lowered, one at a time, where the score falls least for what is saved, until every budget holds.

    It ends, for the most compressed policy is taken to be feasible.
    """
    used = _excess(space, budgets, index_D[None])[0]
    while used > 0:
        lower_ND = space.neighbours(index_D)
        saved_N = used - _excess(space, budgets, lower_ND)
        lost_N = score(index_D[None]) - score(lower_ND)
        # A change that costs nothing and saves something is best; one that saves nothing is last.
        rank_N = np.where(saved_N > 0, np.maximum(lost_N, 0) / np.maximum(saved_N, 1e-12), np.inf)
        index_D = lower_ND[rank_N.argmin()]
        used = _excess(space, budgets, index_D[None])[0]
    return index_D


def _excess(space: Space, budgets: Sequence[Budget], index_ND: Ints) -> Floats:
    """By how much the limits are overstepped, as shares of them, added up."""
    return np.maximum(shares(budgets, space.z_of(index_ND)) - 1, 0).sum(0)


def _feasible(space: Space, budgets: Sequence[Budget], index_ND: Ints) -> Ints:
    return index_ND[(shares(budgets, space.z_of(index_ND)) <= 1).all(0)] if len(index_ND) else index_ND


def _best(score: Score, index_ND: Ints, value: float) -> tuple[Ints, float] | None:
    """The best of some policies, if it is better than `value`."""
    if not len(index_ND):
        return None
    scores_N = score(index_ND)
    top = int(scores_N.argmax())
    return (index_ND[top], float(scores_N[top])) if scores_N[top] > value + 1e-9 else None


def _swaps(space: Space, score: Score, budgets: Sequence[Budget], index_D: Ints) -> Ints:
    """Feasible policies with one gene up and another down, those first whose changes promise most."""
    up_ND, down_ND = space.neighbours(index_D, up=True), space.neighbours(index_D)
    if not len(up_ND) or not len(down_ND):
        return up_ND[:0]
    gain_N, loss_N = score(up_ND), score(down_ND)
    pair_ND = (up_ND[:, None] + down_ND - index_D).reshape(-1, len(index_D))
    promise_N = (gain_N[:, None] + loss_N).ravel()
    differ_N = (pair_ND != index_D).any(-1)  # up and down of one gene are no change
    fits_N = (shares(budgets, space.z_of(pair_ND)) <= 1).all(0) & differ_N
    order_N = np.argsort(-promise_N[fits_N], kind="stable")[:PAIRS]
    return pair_ND[fits_N][order_N]
