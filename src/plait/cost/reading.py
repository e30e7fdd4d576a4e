"""What scoring takes: the models that read samples, one after another, on the devices of one instance."""

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
    """Of all models."""
    piece_ns: float = 0.0
    load_ns: float = 0.0
    shares: tuple[float, ...] = (1.0,)
    """Of `token_ns`, by reader."""

    def __post_init__(self) -> None:
        if min(self.token_ns, self.piece_ns, self.load_ns) < 0:
            raise UserError("times of reading must be at least 0 ns")

    @property
    def load_tokens(self) -> int:
        """Tokens that are read in the time that loading takes."""
        return round(self.load_ns / self.token_ns) if self.token_ns else 0

    def read_ns(self, score: Score) -> int:
        """See `ReadCost`."""
        fixed_ns = self.piece_ns + self.load_ns * score.loads
        share = sum(self.shares[reader] for reader in score.readers)
        return max(1, round(fixed_ns + share * self.token_ns * sum(score.tokens)))


@dataclass(frozen=True, slots=True)
class Readers:
    """Models with a cost each: a piece is one packed forward of every model that reads it."""

    models: tuple[Cost, ...]
    """Of a step on the devices of one instance, by reader."""
    load_ns: int = 0
    """Bringing the models' weights to devices that drew until then."""

    def read_ns(self, score: Score) -> int:
        """See `ReadCost`."""
        rows = tuple(Row(number, 0, count) for number, count in enumerate(score.tokens))
        step = Step(0, (0,), rows)
        forward_ns = sum(self.models[reader].step_ns(step) for reader in score.readers)
        return max(1, self.load_ns * score.loads + forward_ns)


def stated(reading: Readers, tokens: int) -> StatedReading:
    """The straight line through what a piece of one sample and one of 64 take.

    Args:
        tokens: of a sample of usual length.
    """

    def piece_ns(count: int, *readers: int) -> int:
        return reading.read_ns(Score(0, 0, tuple(range(count)), (tokens,) * count, readers))

    numbers = range(len(reading.models))
    one_ns, many_ns = piece_ns(1, *numbers), piece_ns(64, *numbers)
    token_ns = max(0.0, (many_ns - one_ns) / (63 * tokens))
    parts = [piece_ns(64, number) for number in numbers]
    shares = tuple(part / sum(parts) for part in parts)
    return StatedReading(token_ns, max(0.0, one_ns - token_ns * tokens), reading.load_ns, shares)
