"""Draws from rows of logits: the definition in numpy, and the same natively for many rows at once.

A token's weight is an integer: e^((logit - largest) / temperature) in units of 2^-40, by steps in float32
that numpy, torch and C++ round alike (`exponential`; no fused products). Sums of integers have no order, and
what else is computed is one float64 operation at a time, so that every implementation draws the same token.
The largest token weighs 2^40; one below e^-28 of it weighs nothing.

Legend: L rows of logits, R rows of work, V tokens of the vocabulary, N likeliest tokens.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plait.kernels.choice import choose

Logits = NDArray[np.float32]
Weights = NDArray[np.int64]

WISH = np.dtype([("sharpness", "f4"), ("floor", "f4"), ("top_k", "i8"), ("top_p", "f8"), ("share", "f8")])
"""How a row is drawn from; see `wish`. `share` is the row's random number in [0, 1)."""
UNIT = 40
"""The largest token weighs 2^UNIT."""
FAR = -28.0
"""Below it a weight is rounded to nothing."""
MOST_TOKENS = 2 ** (63 - UNIT) - 1
"""The weights of more could overflow."""


def wish(temperature: float, min_p: float, top_k: int, top_p: float, share: float) -> tuple[Any, ...]:
    """An element of an array of WISH.

    The inverse of the temperature is kept finite and above 0, where it would not be in float32; 0 stands
    for greedy.
    """
    sharpness = min(max(1 / temperature, 2.0**-126), 2.0**127) if temperature > 0 else 0.0
    floor = max(math.log(min_p), FAR) if min_p > 0 else FAR
    return sharpness, floor, top_k, top_p, share


def exponential(y: Any) -> tuple[Any, Any]:
    """(p, n) with e^y = p * 2^n within 3e-7, y from FAR to 0: float32 arrays of numpy or torch."""
    n = (y * 1.44269504 + 12582912.0) - 12582912.0
    f = y - n * 0.693359375
    f = f + n * 2.12194440e-4
    p = f * (1 / 5040) + 1 / 720
    for term in (1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0):
        p = p * f + term
    return p, n


class Reference:
    """The definition: oracle and fallback."""

    def draw(self, logits_LV: Logits, at_R: Weights, wishes_R: NDArray[Any], threads: int) -> Weights:
        """A token for each row of work.

        Greedy takes the first of the largest. Else tokens below `floor` are dropped, then those below the
        k-th largest logit, then those that are not among the fewest likeliest (lower ids first) that weigh
        top_p of what is left; the token is the one at which the running sum passes `share` of the rest.

        Args:
            logits_LV: float32, each row dense.
            at_R: int64, the row of logits of each row of work.
            wishes_R: of type WISH.
            threads: ignored here.

        Returns:
            Token ids [R], int64; -1 where the row's largest logit is not finite or one is NaN.
        """
        pairs = zip(at_R, wishes_R, strict=True)
        return np.array([self._draw(logits_LV[at], row) for at, row in pairs], np.int64)

    def _draw(self, logits_V: Logits, row: Any) -> int:
        best = int(logits_V.argmax())  # of NaNs the first
        if not np.isfinite(logits_V[best]):
            return -1
        if row["sharpness"] == 0:
            return best
        weights_V = _weights(logits_V, logits_V[best], row["sharpness"], row["floor"])
        if 0 < row["top_k"] < len(logits_V):
            weights_V[logits_V < np.partition(logits_V, -row["top_k"])[-row["top_k"]]] = 0
        if row["top_p"] < 1:
            total = int(weights_V.sum())
            needed = min(total, math.ceil(float(row["top_p"]) * float(total)))
            kept = _nucleus(logits_V, weights_V, needed, 1024)
            weights_V, left = np.zeros_like(weights_V), weights_V[kept]
            weights_V[kept] = left
        return _pick(weights_V, float(row["share"]))

    def score(
        self, logits_LV: Logits, at_R: Weights, top: int, threads: int
    ) -> tuple[Logits, Weights, Weights]:
        """What log-probabilities are made of: largest logits, total weights, and the likeliest tokens.

        Returns:
            largest [R], NaN where it is not finite; sums of weights at temperature 1 [R]; ids [R, N],
            likeliest first, lower ids first among equals. All but the first are arbitrary where it is NaN.
        """
        largest_R = logits_LV[at_R].max(-1)
        largest_R[~np.isfinite(largest_R)] = np.nan
        totals_R, ids_RN = np.zeros(len(at_R), np.int64), np.zeros((len(at_R), top), np.int64)
        for r in np.flatnonzero(np.isfinite(largest_R)):
            logits_V = logits_LV[at_R[r]]
            totals_R[r] = _weights(logits_V, largest_R[r], np.float32(1), np.float32(FAR)).sum()
            if top:
                near = np.flatnonzero(logits_V >= np.partition(logits_V, -top)[-top])
                ids_RN[r] = near[np.argsort(-logits_V[near], kind="stable")][:top]
        return largest_R, totals_R, ids_RN


def _weights(logits_V: Logits, largest: np.float32, sharpness: np.float32, floor: np.float32) -> Weights:
    with np.errstate(over="ignore"):  # to -inf, which weighs nothing
        scaled_V = (logits_V - largest) * sharpness
    p_V, n_V = exponential(np.maximum(scaled_V, floor))
    unit_V = ((n_V.astype(np.int32) + (127 + UNIT)) << 23).view(np.float32)  # 2^(n + UNIT)
    weights_V = np.rint(p_V * unit_V).astype(np.int64)
    weights_V[scaled_V < floor] = 0
    return weights_V


def _nucleus(logits_V: Logits, weights_V: Weights, needed: int, near: int) -> Weights:
    """The fewest likeliest tokens that weigh `needed`, looked for among the `near` likeliest first: sorting
    the whole vocabulary takes milliseconds."""
    near = min(near, len(logits_V))
    ids = np.flatnonzero(logits_V >= np.partition(logits_V, -near)[-near])
    order = ids[np.argsort(-logits_V[ids], kind="stable")]
    steps = np.cumsum(weights_V[order])
    if steps[-1] < needed:
        return _nucleus(logits_V, weights_V, needed, near * 8)
    return order[: int(np.searchsorted(steps, needed, side="left")) + 1]


def _pick(weights_V: Weights, share: float) -> int:
    """The token at which the running sum of weights passes `share` of their total.

    Sums of blocks find the block first: a running sum over all tokens is ten times as slow.
    """
    block = 256
    sums = np.cumsum(np.add.reduceat(weights_V, np.arange(0, len(weights_V), block)))
    total = int(sums[-1])
    target = min(int(share * float(total)), total - 1)
    at = int(np.searchsorted(sums, target, side="right"))
    rest = target - int(sums[at - 1]) if at else target
    inside = np.cumsum(weights_V[at * block : (at + 1) * block])
    return at * block + int(np.searchsorted(inside, rest, side="right"))


class Native:
    """The compiled code, a row a thread; signatures are those of `Reference`."""

    def __init__(self, isa: str | None = None) -> None:
        """For one instruction set of those that this CPU runs; None: the one in use."""
        choice = choose()
        assert choice.native is not None, "make this only where native kernels are in use"
        self.native, self.isa = choice.native, isa or choice.isa

    def draw(self, logits_LV: Logits, at_R: Weights, wishes_R: NDArray[Any], threads: int) -> Weights:
        """A token for each row of work; see `Reference.draw`."""
        assert wishes_R.dtype == WISH and wishes_R.shape == at_R.shape, "a wish for each row"  # noqa: PT018
        tokens_R = np.empty(len(at_R), np.int64)
        self.native.draw(
            self.isa, *_rows(logits_LV, at_R), _address(wishes_R), _address(tokens_R), len(at_R), threads
        )
        return tokens_R

    def score(
        self, logits_LV: Logits, at_R: Weights, top: int, threads: int
    ) -> tuple[Logits, Weights, Weights]:
        """What log-probabilities are made of; see `Reference.score`."""
        assert 0 <= top <= logits_LV.shape[1], "no more tokens than there are"
        largest_R, totals_R = np.empty(len(at_R), np.float32), np.zeros(len(at_R), np.int64)
        ids_RN = np.zeros((len(at_R), top), np.int64)
        outputs = (_address(largest_R), _address(totals_R), _address(ids_RN))
        self.native.score(self.isa, *_rows(logits_LV, at_R), top, *outputs, len(at_R), threads)
        return largest_R, totals_R, ids_RN


def _address(array: NDArray[Any]) -> int:
    assert array.flags.c_contiguous, "a dense array"
    return int(array.__array_interface__["data"][0])


def _rows(logits_LV: Logits, at_R: Weights) -> tuple[int, int, int, int]:
    """Address, distance of rows, vocabulary and the address of the rows' indices."""
    assert logits_LV.dtype == np.float32 and at_R.dtype == np.int64, "float32 logits, int64 rows"  # noqa: PT018
    assert logits_LV.strides[1] == 4 and logits_LV.strides[0] % 4 == 0, "dense rows"  # noqa: PT018
    assert 0 < logits_LV.shape[1] <= MOST_TOKENS, "a vocabulary whose weights can be added up"
    assert len(at_R) == 0 or 0 <= at_R.min() <= at_R.max() < len(logits_LV), "rows that there are"
    address = int(logits_LV.__array_interface__["data"][0])
    return address, logits_LV.strides[0] // 4, logits_LV.shape[1], _address(at_R)


_OPS = Native() if choose().native else Reference()
draw, score = _OPS.draw, _OPS.score
