"""`WorkerConfig`: all that one worker process is told when it starts, as one JSON line on its stdin."""

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

import msgspec

from plait.model.config import ModelConfig


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
