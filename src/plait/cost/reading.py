"""What scoring takes: the models that read samples, one after another, on the devices of one instance."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from plait.cost.cost import Cost
from plait.spec.command import Score
from plait.spec.errors import UserError
from plait.spec.step import Row, Step


class ReadCost(Protocol):
    """Predicts the time of a `Score` on an idle instance."""

    def read_ns(self, score: Score) -> int:
        """Nanoseconds until all models have read all its samples."""
        ...


@dataclass(frozen=True, slots=True)
class StatedReading:
    """A time for each token, one for each piece of work, and one for loading what reads."""

    token_ns: float
    piece_ns: float = 0.0
    load_ns: float = 0.0

    def __post_init__(self) -> None:
        if min(self.token_ns, self.piece_ns, self.load_ns) < 0:
            raise UserError("times of reading must be at least 0 ns")

    def read_ns(self, score: Score) -> int:
        """See `ReadCost`."""
        fixed_ns = self.piece_ns + self.load_ns * score.loads
        return max(1, round(fixed_ns + self.token_ns * sum(score.tokens)))


@dataclass(frozen=True, slots=True)
class Reading:
    """Models with a cost each: a piece is one packed forward of every model."""

    models: tuple[Cost, ...]
    """Of a step on the devices of one instance."""
    load_ns: int = 0
    """Bringing the models' weights to devices that drew until then."""

    def read_ns(self, score: Score) -> int:
        """See `ReadCost`."""
        return max(1, self.load_ns * score.loads + self.forward_ns(score.tokens))

    def forward_ns(self, tokens: Sequence[int]) -> int:
        """One packed forward of every model over samples of these lengths."""
        rows = tuple(Row(number, 0, count) for number, count in enumerate(tokens))
        step = Step(0, (0,), rows)
        return sum(cost.step_ns(step) for cost in self.models)


def stated(reading: ReadCost, tokens: int) -> StatedReading:
    """The straight line through what a piece of one sample and one of 64 take.

    Args:
        tokens: of a sample of usual length.
    """

    def piece_ns(count: int, loads: bool = False) -> int:
        return reading.read_ns(Score(0, 0, tuple(range(count)), (tokens,) * count, loads))

    one_ns, many_ns = piece_ns(1), piece_ns(64)
    token_ns = max(0.0, (many_ns - one_ns) / (63 * tokens))
    return StatedReading(token_ns, max(0.0, one_ns - token_ns * tokens), piece_ns(1, True) - one_ns)
