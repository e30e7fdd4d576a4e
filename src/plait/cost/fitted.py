"""`Fitted`: a few measured coefficients, monotone because none of them may be negative."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import combinations
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from plait.cost.cost import Load
from plait.spec.errors import UserError
from plait.spec.step import Step

ROUNDS = 8
"""Of a fit; each takes its errors relative to the prediction of the one before."""
LEAST = 1e-6
"""Share of the mean time that every prediction counts as at least."""


@dataclass(frozen=True, slots=True)
class Timing:
    """One measured step."""

    step: Step
    ns: float


@dataclass(frozen=True, slots=True)
class Fitted:
    """Prefill: alpha + beta * sum(len) + gamma * sum(len^2) + delta * sum(cached).
    Decode: a + b * sum(context) + c * batch.

    `len^2` of a chunk after `cached` tokens is (cached + len)^2 - cached^2, so the chunks of a prompt sum to
    the whole. A step with both phases pays the larger fixed part once, since it reads the weights once.
    Instances of a group share all but the fixed part evenly.
    """

    prefill_ns: float
    """alpha: fixed part of a step with chunks."""
    prefill_token_ns: float
    """beta: for each new token."""
    prefill_square_ns: float
    """gamma: for each unit of len^2."""
    prefill_cached_ns: float
    """delta: for each cached token that a chunk reads."""
    decode_ns: float
    """a: fixed part of a step with decodes."""
    decode_context_ns: float
    """b: for each token of context."""
    decode_row_ns: float
    """c: for each row."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not (np.isfinite(value) and value >= 0):
                raise UserError(f"{name} is {value}; a cost must not fall as the load grows, so fit it anew")

    def step_ns(self, step: Step) -> int:
        """See `Cost`."""
        load = Load.of(step)
        fixed = max(self.prefill_ns if load.chunk_tokens else 0.0, self.decode_ns if load.decodes else 0.0)
        work = (
            self.prefill_token_ns * load.chunk_tokens
            + self.prefill_square_ns * _squares(load)
            + self.prefill_cached_ns * load.cached_tokens
            + self.decode_context_ns * load.context_tokens
            + self.decode_row_ns * load.decodes
        )
        return max(1, round(fixed + work / load.members))

    @staticmethod
    def fit(timings: Sequence[Timing]) -> "Fitted":
        """Non-negative least squares on relative error, each phase on its own; see `_non_negative`.

        Args:
            timings: steps of one instance, each either chunks only or decodes only; both phases occur.

        Raises:
            UserError: a phase has no timing, a step mixes them, or a time is not positive.
        """
        loads = [(Load.of(timing.step), timing.ns) for timing in timings]
        if any(ns <= 0 for _, ns in loads):
            raise UserError("a measured time is not positive; leave failed steps out")
        if any(load.chunk_tokens and load.decodes for load, _ in loads):
            raise UserError("a measured step has both chunks and decodes; time the phases apart")
        chunks = [(load, ns) for load, ns in loads if load.chunk_tokens]
        decodes = [(load, ns) for load, ns in loads if load.decodes]
        if not chunks or not decodes:
            raise UserError("both phases must be timed: give at least one step of chunks and one of decodes")
        prefill = [(1.0, load.chunk_tokens, _squares(load), load.cached_tokens) for load, _ in chunks]
        decode = [(1.0, load.context_tokens, load.decodes) for load, _ in decodes]
        return Fitted(
            *_non_negative(np.array(prefill, float), np.array([ns for _, ns in chunks])),
            *_non_negative(np.array(decode, float), np.array([ns for _, ns in decodes])),
        )

    def save(self, path: Path) -> None:
        """Write the coefficients as one JSON object, in nanoseconds."""
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self)) + b"\n")

    @staticmethod
    def load(path: Path) -> "Fitted":
        """Read what `save` wrote.

        Raises:
            UserError: the file is missing, a coefficient is, or one is negative.
        """
        try:
            found = msgspec.json.decode(path.read_bytes(), type=dict[str, float])
        except (OSError, msgspec.DecodeError, ValueError, RecursionError) as error:
            raise UserError(f"{path} holds no fitted cost model: {error}") from error
        names = {field.name for field in fields(Fitted)}
        if found.keys() != names:
            raise UserError(f"{path}: expected exactly the keys {', '.join(sorted(names))}")
        try:
            return Fitted(**found)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error


def _squares(load: Load) -> int:
    """Sum of (cached + len)^2 - cached^2 over the chunks, since position p adds 2p + 1 to it."""
    return 2 * load.chunk_pairs - load.chunk_tokens


def _non_negative(features: NDArray[np.float64], times: NDArray[np.float64]) -> list[float]:
    """Coefficients >= 0 that minimise the squared error relative to what they predict.

    Not relative to what was measured: live, a step whose answer was seen late is followed by one that seems
    to have taken no time, which would then outweigh all others. Predictions are those of the round before.
    """
    scale = np.maximum(np.abs(features).max(axis=0), 1e-300)
    rows, typical = features / scale, np.full(len(times), times.mean())
    for _ in range(ROUNDS):
        found = _least_squares(rows / typical[:, None], times / typical)
        typical = np.maximum(rows @ found, LEAST * times.mean())
    return [float(value) for value in found / scale]


def _least_squares(rows: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The best non-negative solution is the plain one on the columns that it uses. There are at most four, so
    all sets of columns are tried; ties go to the smaller set."""
    best, best_error = np.zeros(rows.shape[1]), float(np.sum(values**2))
    columns = range(rows.shape[1])
    for size in range(1, rows.shape[1] + 1):
        for chosen in combinations(columns, size):
            picked = rows[:, chosen]
            solution, *_ = np.linalg.lstsq(picked, values, rcond=None)
            error = float(np.sum((picked @ solution - values) ** 2))
            if (solution >= 0).all() and error < best_error - 1e-15:
                best, best_error = np.zeros(rows.shape[1]), error
                best[list(chosen)] = solution
    return best
