"""`WorkerConfig`: all that one worker process is told when it starts, as one JSON line on its stdin."""

from dataclasses import dataclass

import msgspec

from plait.model.config import ModelConfig


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """One instance of one epoch."""

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

    @property
    def identity(self) -> bytes:
        """Name of this worker's connection."""
        return b"%d.%d" % (self.instance, self.epoch)

    def to_line(self) -> bytes:
        """JSON, one line."""
        return msgspec.json.encode(self) + b"\n"

    @staticmethod
    def from_line(line: bytes) -> "WorkerConfig":
        """Read what `to_line` wrote. Raises msgspec.DecodeError if it is not that."""
        return msgspec.json.decode(line, type=WorkerConfig)
