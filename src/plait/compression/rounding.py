"""From a continuous policy to levels: round, repair what went over a budget, then exchange and fill.

Legend: D genes, N candidates, K budgets.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from plait.compression.optimiser import Budget, shares
from plait.compression.space import Floats, Ints, Space

Score = Callable[[Ints], Floats]
"""Of discrete policies (N, D) how good each is (N); higher is better."""
DEEPEST = 4
"""Changes that may make up for one."""
PAIRS = 8
"""Swaps that are scored in each round, of those that promise most."""


def settle(
    space: Space, score: Score, budgets: Sequence[Budget], z_D: Floats, rounds: int = 200
) -> tuple[Ints, float]:
    """A feasible discrete policy near z that no exchange of levels improves, and its score."""
    index_D = repair(space, score, budgets, space.index_of(z_D))
    value = float(score(index_D[None])[0])
    for _ in range(rounds):
        singles = _singles(space, score, budgets, index_D, value)
        other_ND = np.concatenate(
            [_paid_for(space, budgets, singles), _filled(space, budgets, singles), _pairs(singles)]
        )
        fits_ND = other_ND[(shares(budgets, space.z_of(other_ND)) <= 1).all(0)]
        if not len(fits_ND):
            break
        score_N = score(fits_ND)
        top = int(score_N.argmax())
        if score_N[top] <= value + 1e-9:
            break
        index_D, value = fits_ND[top], float(score_N[top])
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


@dataclass(frozen=True, slots=True)
class _Singles:
    """What single changes of one policy do; where a gene is at its end, that none is worth it."""

    index_D: Ints
    gain_D: Floats
    """Of the score, one level up."""
    loss_D: Floats
    """Of the score, one level down."""
    price_D: Floats
    """Share of the tightest budget, one level up."""
    saving_D: Floats
    """The same, one level down."""


def _singles(space: Space, score: Score, budgets: Sequence[Budget], index_D: Ints, value: float) -> _Singles:
    can_up, can_down = index_D < space.count_D - 1, index_D > 0
    moved_ND = np.concatenate([space.neighbours(index_D, up=True), space.neighbours(index_D)])
    all_ND = np.concatenate([index_D[None], moved_ND])
    used_KN = shares(budgets, space.z_of(all_ND))
    tightest_N = used_KN[used_KN[:, 0].argmax()]
    change_N = score(moved_ND) - value if len(moved_ND) else np.empty(0)
    ups = int(can_up.sum())
    parts = [np.full(len(index_D), fill) for fill in (-np.inf, np.inf, 2.0, 0.0)]
    parts[0][can_up], parts[1][can_down] = change_N[:ups], -change_N[ups:]
    parts[2][can_up] = tightest_N[1 : ups + 1] - tightest_N[0]
    parts[3][can_down] = tightest_N[0] - tightest_N[ups + 1 :]
    return _Singles(index_D, *parts)


def _paid_for(space: Space, budgets: Sequence[Budget], singles: _Singles) -> Ints:
    """Each gene raised, and others lowered, those first that lose least for what they save, until it fits."""
    row_ND = space.neighbours(singles.index_D, up=True)
    raised_ND = row_ND > singles.index_D
    worth_D = np.maximum(singles.loss_D, 0) / np.maximum(singles.saving_D, 1e-12)
    for _ in range(DEEPEST):
        over_N = (shares(budgets, space.z_of(row_ND)) > 1).any(0)
        if not over_N.any():
            break
        # A gene that was lowered already may be lowered again, but others come first.
        again_ND = (singles.index_D - row_ND).clip(0) * 0.5 + 1
        rank_ND = np.where(raised_ND | (row_ND <= 0), np.inf, worth_D * again_ND)
        row_ND[over_N, rank_ND[over_N].argmin(1)] -= 1
    return row_ND[(row_ND >= 0).all(1)]


def _filled(space: Space, budgets: Sequence[Budget], singles: _Singles) -> Ints:
    """Each gene lowered, and others raised, those first that gain most for their price, while they fit."""
    row_ND = space.neighbours(singles.index_D)
    if not len(row_ND):
        return row_ND
    left_ND = (row_ND == singles.index_D) & (singles.index_D < space.count_D - 1)
    worth_D = singles.gain_D / np.maximum(singles.price_D, 1e-12)
    for _ in range(DEEPEST):
        room_N = 1 - shares(budgets, space.z_of(row_ND)).max(0)
        rank_ND = np.where(left_ND & (singles.price_D <= room_N[:, None]), worth_D, -np.inf)
        best_N = rank_ND.argmax(1)
        good_N = rank_ND[np.arange(len(row_ND)), best_N] > 0
        row_ND[good_N, best_N[good_N]] += 1
        left_ND[good_N, best_N[good_N]] = False
    return row_ND


def _pairs(singles: _Singles) -> Ints:
    """One gene up and another down, those pairs whose changes add up to most and that seem to fit."""
    promise_DD = singles.gain_D[:, None] - singles.loss_D
    promise_DD[np.diag_indices_from(promise_DD)] = -np.inf
    promise_DD[singles.price_D[:, None] > singles.saving_D + 1] = -np.inf
    chosen = np.argsort(-promise_DD, axis=None, kind="stable")[:PAIRS]
    up_N, down_N = np.unravel_index(chosen[np.isfinite(promise_DD.ravel()[chosen])], promise_DD.shape)
    row_ND = np.repeat(singles.index_D[None], len(up_N), 0)
    row_ND[np.arange(len(up_N)), up_N] += 1
    row_ND[np.arange(len(up_N)), down_N] -= 1
    return row_ND


def _excess(space: Space, budgets: Sequence[Budget], index_ND: Ints) -> Floats:
    """By how much the limits are overstepped, as shares of them, added up."""
    return np.maximum(shares(budgets, space.z_of(index_ND)) - 1, 0).sum(0)
