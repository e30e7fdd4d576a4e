"""`Sheet`: one event of the dashboard's stream, all that a viewer shows.

Each stands by itself, so one that is lost is made up for by the next.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from plait.workload.board.alignment import AlignmentNow
from plait.workload.board.picture import Picture
from plait.workload.board.trials import Trials

encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Film:
    """Pictures of a run that was recorded: a viewer may ask for an earlier one."""

    begin_us: int
    end_us: int
    read: float
    """Share of the journal that is read so far."""


@dataclass(frozen=True, slots=True)
class Sheet:
    """See the module."""

    title: str
    """The model, or the run."""
    world: str
    """live, paced, sim, or empty where no core ran."""
    plait: str
    """Version that wrote it."""
    picture: Picture | None = None
    """Of the core; None: none was recorded."""
    film: Film | None = None
    """None: it is live."""
    alignment: AlignmentNow | None = None
    trials: Trials | None = None
    fault: str = ""
    """Why nothing more comes."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """What the run's header says of itself, in words."""


decode = msgspec.json.Decoder(Sheet).decode
