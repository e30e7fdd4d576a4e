"""`Candidate`: a group of instances that serves alone, to be repeated as often as the rate asks for.

All published placements are some of them: colocated instances; independent plans for prefill and decode with
n : m instances (DistServe's algorithm 1, for fast links between nodes); a prefill and a decode instance whose
stages lie pairwise on the same nodes (its algorithm 2, for slow ones); and instances of all three roles.
Elastic instances (LoongServe's) are one pool that does both, or two, one for each phase.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import gcd

from plait.planner.cluster import Cluster
from plait.planner.plans import Plan
from plait.spec.cluster import Instance, Placement, Role


@dataclass(frozen=True, slots=True, order=True)
class Part:
    """Equal instances of one role."""

    role: Role
    plan: Plan
    count: int = 1

    @property
    def devices(self) -> int:
        """Of all of them."""
        return self.count * self.plan.devices

    def __str__(self) -> str:
        return f"{self.count} x {self.role.value} {self.plan}"


@dataclass(frozen=True, slots=True, order=True)
class Candidate:
    """What is placed together."""

    parts: tuple[Part, ...]

    @property
    def devices(self) -> int:
        """Of one copy."""
        return sum(part.devices for part in self.parts)

    @property
    def kind(self) -> str:
        """colocated, disaggregated, hybrid, elastic or pools."""
        roles = {part.role for part in self.parts}
        if any(role.elastic for role in roles):
            return "elastic" if roles == {Role.ELASTIC} else "pools"
        if roles == {Role.MIXED}:
            return "colocated"
        return "hybrid" if Role.MIXED in roles else "disaggregated"

    def __str__(self) -> str:
        return " + ".join(str(part) for part in self.parts)

    def instances(self, step_tokens: Callable[[Part], int]) -> tuple[Instance, ...]:
        """One copy, all on the first node: where it does not matter what lies where."""
        each = [part for part in self.parts for _ in range(part.count)]
        return tuple(
            Instance(i, part.role, part.plan.tp, part.plan.pp, 0, part.plan.nodes, step_tokens(part))
            for i, part in enumerate(each)
        )

    def place(self, cluster: Cluster, copies: int, step_tokens: Callable[[Part], int]) -> Placement | None:
        """Put `copies` of it on the nodes, each in as few as possible; None: there is no room."""
        free = [cluster.devices_per_node] * cluster.nodes
        found: list[Instance] = []
        for _ in range(copies):
            for group in self._together(cluster):
                width = group[0].plan.nodes
                need = sum(part.plan.devices for part in group) // width
                nodes = [node for node, left in enumerate(free) if left >= need][:width]
                if len(nodes) < width:
                    return None
                for node in nodes:
                    free[node] -= need
                for part in group:
                    plan, tokens = part.plan, step_tokens(part)
                    found.append(Instance(len(found), part.role, plan.tp, plan.pp, nodes[0], width, tokens))
        return Placement(tuple(found))

    def _together(self, cluster: Cluster) -> list[list[Part]]:
        """Instances that share nodes, so that KV stays inside: all of them if they can, else each alone."""
        each = [Part(part.role, part.plan) for part in self.parts for _ in range(part.count)]
        widths = {part.plan.nodes for part in each}
        if len(widths) == 1 and self.devices <= cluster.devices_per_node * max(widths):
            return [each]
        return [[part] for part in sorted(each, key=lambda part: -part.devices)]


def candidates(plans: Sequence[Plan], most_devices: int, most_count: int = 4) -> Iterator[Candidate]:
    """Every candidate of at most `most_devices` devices with at most `most_count` instances a role, in one
    fixed order. Numbers of instances with a common divisor are left out where they are copies of a smaller
    one, but for colocated instances, which gain by sharing a queue."""
    for plan in plans:
        for count in _powers(most_count):
            if count * plan.devices <= most_devices:
                yield Candidate((Part(Role.MIXED, plan, count),))
    for prefill in plans:
        for decode in plans:
            yield from _pairs(prefill, decode, plans, most_devices, most_count)


def _pairs(
    prefill: Plan, decode: Plan, plans: Sequence[Plan], most_devices: int, most_count: int
) -> Iterator[Candidate]:
    for n in range(1, most_count + 1):
        for m in range(1, most_count + 1):
            pair = Part(Role.PREFILL, prefill, n), Part(Role.DECODE, decode, m)
            left = most_devices - sum(part.devices for part in pair)
            if left < 0 or gcd(n, m) > 1:
                continue
            yield Candidate(pair)
            # A hybrid's flexible instance takes the plan of one of the others.
            for plan in dict.fromkeys((prefill, decode)):
                if plan.devices <= left and n == m == 1:
                    yield Candidate((*pair, Part(Role.MIXED, plan)))


def elastic_candidates(plans: Sequence[Plan], most_devices: int, most_count: int) -> Iterator[Candidate]:
    """The same of elastic instances: of one pool, and of two. They have no stages. One pool may have as many
    instances as there are."""
    plans = [plan for plan in plans if plan.pp == plan.nodes == 1]
    for plan in plans:
        for count in _powers(most_devices // plan.devices)[1:]:
            yield Candidate((Part(Role.ELASTIC, plan, count),))
    for prefill in plans:
        for decode in plans:
            for n in _powers(most_count):
                for m in _powers(most_count):
                    parts = Part(Role.ELASTIC_PREFILL, prefill, n), Part(Role.ELASTIC_DECODE, decode, m)
                    if n + m > 2 and sum(part.devices for part in parts) <= most_devices:
                        yield Candidate(parts)


def low_affinity(candidate: Candidate, devices_per_node: int) -> bool:
    """Whether DistServe's algorithm 2 would try it: one pair, with the same stages on the same nodes."""
    if candidate.kind != "disaggregated":
        return False
    prefill, decode = candidate.parts
    nodes = prefill.plan.nodes
    alone = prefill.count == decode.count == 1
    return alone and decode.plan.nodes == nodes and candidate.devices <= nodes * devices_per_node


def _powers(most: int) -> list[int]:
    return [1 << i for i in range(most.bit_length()) if 1 << i <= most]
