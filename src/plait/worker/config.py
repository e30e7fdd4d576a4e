"""`WorkerConfig`: all that one worker process is told when it starts, as one JSON line on its stdin."""

import hashlib
import tempfile
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import msgspec

from plait.model.config import ModelConfig
from plait.spec.adapter import Adapter


class Way(StrEnum):
    """How a part reaches its target."""

    SHARED = "shared"
    """Memory that two workers of one host share."""
    NIXL = "nixl"
    """Written into the target's memory by NIXL, where both ends have it installed."""
    FRAMES = "frames"
    """In the signed frames of the connection."""


@dataclass(frozen=True, slots=True)
class LinkConfig:
    """How keys and values travel between two workers."""

    part_bytes: int = 1 << 20
    """Copied at once; a block of a layer where that is more."""
    window: int = 2
    """Parts under way on a link."""
    ways: tuple[Way, ...] = (Way.SHARED, Way.NIXL)
    """Tried in this order; if a source can be reached by none of them, bytes go in the frames."""
    checksum: bool = True
    """Every part is summed up at both ends; one that differs is asked for again."""
    retries: int = 2
    """Times that a part is asked for again before the move fails."""
    patience_s: float = 10.0
    """A peer that owes something and says nothing for so many seconds is given up."""
    room_bytes: int = 1 << 20
    """Under way at once from one member of a group to another."""
    lease_s: float = 60.0
    """A source frees what it keeps for a link after so many seconds without any ask; it waits as long for a
    step that writes what is asked for."""
    bytes_per_s: float | None = None
    """Most that a source gives over one link, for tests and paced runs; None: as fast as it can."""


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """One process of an instance, in one epoch."""

    instance: int
    epoch: int
    """Counts the starts of this instance; answers of older epochs are ignored."""
    address: str
    """ZeroMQ endpoint of the driver."""
    secret: str
    """The run's secret, in hex."""
    model: ModelConfig
    beat_ns: int = 500_000_000
    """Time between signs of life."""
    patience_s: float = 60.0
    """Longest wait for another process of the instance, in seconds: no step may take longer."""
    links: LinkConfig = field(default_factory=LinkConfig)
    """How keys and values travel between this worker and others."""
    adapters: tuple[Adapter, ...] = ()
    """Those that it has before it says that it is ready."""

    @property
    def identity(self) -> bytes:
        """Name of this worker's connection."""
        return b"%d.%d.%d" % (self.instance, self.epoch, self.model.rank.index)

    @property
    def meeting(self) -> str:
        """File in which the processes of this instance and epoch meet: nobody else can tell its name."""
        key, name = bytes.fromhex(self.secret)[:64], b"%d.%d" % (self.instance, self.epoch)
        digest = hashlib.blake2b(name, digest_size=16, key=key, person=b"world").hexdigest()
        return str(Path(tempfile.gettempdir()) / f"plait-{digest}")

    def to_line(self) -> bytes:
        """JSON, one line."""
        return msgspec.json.encode(self) + b"\n"

    @staticmethod
    def from_line(line: bytes) -> "WorkerConfig":
        """Read what `to_line` wrote. Raises msgspec.DecodeError if it is not that."""
        return msgspec.json.decode(line, type=WorkerConfig)
