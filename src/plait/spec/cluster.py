"""What there is, and what goes where: devices, links, instances and the roles they play."""

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """Which phases an instance takes."""

    MIXED = "mixed"
    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(frozen=True, slots=True)
class Device:
    """One accelerator, or one core of a CPU, as the roofline sees it."""

    name: str
    flops: float
    """Dense matrix FLOP/s at `dtype_bytes`."""
    bandwidth: float
    """Memory bytes/s."""
    memory_bytes: int
    dtype_bytes: float = 2.0
    step_ns: int = 0
    """Fixed cost of a step: launches, Python, dispatch."""
    efficiency: float = 1.0
    """Share of `flops` that large matrix products reach."""


@dataclass(frozen=True, slots=True)
class Link:
    """A connection between two instances."""

    bandwidth: float
    """Bytes/s one way."""
    latency_ns: int = 0


@dataclass(frozen=True, slots=True)
class Instance:
    """The smallest set of devices that holds all weights and runs a step alone."""

    id: int
    role: Role = Role.MIXED
    tp: int = 1
    pp: int = 1


@dataclass(frozen=True, slots=True)
class Placement:
    """Which instances serve, in which role, with how much parallelism inside."""

    instances: tuple[Instance, ...]

    @staticmethod
    def colocated(count: int) -> "Placement":
        """`count` equal instances that take both phases."""
        return Placement(tuple(Instance(i) for i in range(count)))
