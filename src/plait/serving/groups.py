"""Groups of instances that decode together: who shares keys and values must.

A group is not stored but found: two instances are of one group when a request has KV on both. So groups merge
when a request spreads, and fall apart when it ends; nothing is moved for either.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from plait.serving.live import Live


@dataclass(slots=True, eq=False)
class Group:
    """Instances, and the requests that decode on them."""

    members: tuple[int, ...]
    """Ascending: the ring order of their steps."""
    lives: dict[int, Live] = field(default_factory=dict)


def groups_of(lives: Iterable[Live]) -> list[Group]:
    """The groups in which these requests decode, in the order of their first members."""
    root: dict[int, int] = {}

    def find(instance: int) -> int:
        while root[instance] != instance:
            root[instance] = root[root[instance]]
            instance = root[instance]
        return instance

    lives = tuple(lives)
    for live in lives:
        instances = live.instances
        for instance in instances:
            root.setdefault(instance, instance)
        first = find(instances[0])
        for instance in instances[1:]:
            root[find(instance)] = first
    members: dict[int, list[int]] = {}
    for instance in sorted(root):
        members.setdefault(find(instance), []).append(instance)
    groups = {top: Group(tuple(found)) for top, found in members.items()}
    for live in lives:
        groups[find(live.instances[0])].lives[live.id] = live
    return list(groups.values())
