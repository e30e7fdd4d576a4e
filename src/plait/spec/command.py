"""Commands: the only way wishes leave a core. (`Step`, and `Move` with `Cancel`, have files of their own.)"""

from dataclasses import dataclass

from plait.spec.move import Cancel, Move
from plait.spec.request import EndReason
from plait.spec.step import Step


@dataclass(frozen=True, slots=True)
class Wake:
    """Send `Woken(at_ns)` once this time has come."""

    at_ns: int


@dataclass(frozen=True, slots=True)
class Token:
    """Give the callers of these requests what their rows drew in `step`."""

    step: int
    requests: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class End:
    """The request is over: nothing more will be said of it."""

    request: int
    reason: EndReason
    tokens: int
    """Drawn tokens that belong to the answer."""


@dataclass(frozen=True, slots=True)
class Score:
    """Have every model read the samples of these batches, on the devices of instances that are lent."""

    batches: tuple[int, ...]


Command = Step | Move | Cancel | Wake | Token | End | Score
