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
    """Have models read the samples of these batches, on the devices of an instance that is lent."""

    id: int
    """Of the order that steps and moves share."""
    instance: int
    batches: tuple[int, ...]
    """Rising."""
    tokens: tuple[int, ...]
    """Of each of their samples, prompt and response."""
    readers: tuple[int, ...] = (0,)
    """Which models, by their numbers below `Rollout.readers`."""
    loads: bool = False
    """The instance drew until now: models that read are loaded first."""
    why: str = ""
    """In words, for the journal: what is left to score, and who draws meanwhile."""


Command = Step | Move | Cancel | Wake | Token | End | Score
