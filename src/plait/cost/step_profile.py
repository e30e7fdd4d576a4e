"""`StepProfile`: what `plait profile` measured on a machine, and the cost model that came of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from plait.cost.fitted import Fitted
from plait.spec.errors import UserError

SATURATED = 0.9


@dataclass(frozen=True, slots=True)
class Point:
    """The median step of one cell of the grid."""

    phase: str
    """prefill or decode."""
    rows: int
    tokens: int
    """Of the prompt, or of context a row."""
    ns: float


@dataclass(frozen=True, slots=True)
class StepProfile:
    """Coefficients for `simulate --cost` and `serve --pace`, and what they were fitted to."""

    model: str
    machine: str
    threads: int
    dtype: str
    saturation_tokens: int
    """L_m: prompts are packed into steps of up to this many tokens."""
    fitted: Fitted
    points: tuple[Point, ...]

    @property
    def worst(self) -> float:
        """Largest relative difference between a point and what `fitted` says of it."""
        return max((abs(self._fit_ns(point) / point.ns - 1) for point in self.points), default=0.0)

    def _fit_ns(self, point: Point) -> float:
        fitted = self.fitted
        if point.phase == "prefill":
            square = fitted.prefill_square_ns * point.tokens**2
            return fitted.prefill_ns + fitted.prefill_token_ns * point.tokens + square
        context = fitted.decode_context_ns * point.tokens * point.rows
        return fitted.decode_ns + fitted.decode_row_ns * point.rows + context

    def save(self, path: Path) -> None:
        """Write it as one JSON object."""
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self)) + b"\n")

    @staticmethod
    def load(path: Path) -> "StepProfile":
        """Read what `save` wrote.

        Raises:
            UserError: the file is missing or malformed.
        """
        try:
            return msgspec.json.decode(path.read_bytes(), type=StepProfile)
        except (OSError, msgspec.DecodeError, ValueError, RecursionError, UserError) as error:
            raise UserError(f"{path} is no profile; write one with `plait profile`: {error}") from error


def saturation(times_ns: Mapping[int, float], share: float = SATURATED) -> int:
    """DistServe's L_m: the fewest prompt tokens a step whose rate is near the best that was seen.

    Args:
        times_ns: time of a step by its prompt tokens.
        share: of the best rate (tokens/s).

    Raises:
        UserError: nothing was measured.
    """
    if not times_ns:
        raise UserError("no prefill was measured, so nothing is known of its saturation")
    rates = {tokens: tokens / ns for tokens, ns in times_ns.items()}
    best = max(rates.values())
    return min(tokens for tokens, rate in rates.items() if rate >= share * best)


def median_of(times_ns: Sequence[float]) -> float:
    """The lower median: a time that was really measured."""
    return sorted(times_ns)[(len(times_ns) - 1) // 2]
