"""What there is, and what goes where: devices, links, instances and the roles they play."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """Which phases an instance takes. What it has begun it finishes, whatever its role becomes (but LENT)."""

    MIXED = "mixed"
    PREFILL = "prefill"
    DECODE = "decode"
    ELASTIC = "elastic"
    """Both, in groups that are formed anew for every step."""
    ELASTIC_PREFILL = "elastic-prefill"
    """Prompts only, in such groups; their KV goes on to instances that decode."""
    ELASTIC_DECODE = "elastic-decode"
    """Requests whose prompt is computed, in such groups."""
    LENT = "lent"
    """None: it works for others. What it has begun goes on elsewhere."""

    @property
    def prefills(self) -> bool:
        """It takes prompts."""
        return self not in (Role.DECODE, Role.ELASTIC_DECODE, Role.LENT)

    @property
    def decodes(self) -> bool:
        """It takes requests whose prompt is computed."""
        return self not in (Role.PREFILL, Role.ELASTIC_PREFILL, Role.LENT)

    @property
    def elastic(self) -> bool:
        """It computes steps together with others of its pool."""
        return self in (Role.ELASTIC, Role.ELASTIC_PREFILL, Role.ELASTIC_DECODE)


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
    node: int = 0
    """Host that its devices are on: instances of one node are joined by its local links."""
    nodes: int = 1
    """Hosts, from `node` on, over which its pipeline stages are spread evenly."""
    step_tokens: int | None = None
    """Tokens that saturate it (L_m), measured for its plan: steps are packed up to that many; None: the
    batcher's own figure."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Which instances serve, in which role, with how much parallelism inside.

    All MIXED is a colocated deployment, PREFILL and DECODE a disaggregated one, all three a hybrid. Elastic
    instances form one pool, or two: one that prefills and one that decodes.
    """

    instances: tuple[Instance, ...] = ()
    """Those that are not named are MIXED."""

    @staticmethod
    def colocated(count: int) -> "Placement":
        """`count` equal instances that take both phases."""
        return Placement(tuple(Instance(i) for i in range(count)))

    @staticmethod
    def disaggregated(prefill: int, decode: int, mixed: int = 0) -> "Placement":
        """Equal instances: first those that prefill, then those that decode, then those that do both."""
        roles = (Role.PREFILL,) * prefill + (Role.DECODE,) * decode + (Role.MIXED,) * mixed
        return Placement(tuple(Instance(i, role) for i, role in enumerate(roles)))


def incomplete(roles: Iterable[Role]) -> str:
    """What instances in these roles lack to serve, in words; empty: nothing. Elastic ones hand over among
    themselves."""
    roles = [role for role in roles if role is not Role.LENT]
    for elastic, kind in ((False, ""), (True, "elastic ")):
        some = [role for role in roles if role.elastic is elastic]
        if some and not (any(role.prefills for role in some) and any(role.decodes for role in some)):
            return f"an {kind}instance that prefills and one that decodes"
    return "" if roles else "an instance that prefills and one that decodes"
