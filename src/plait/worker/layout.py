"""Which parts of a request's KV lie on which worker, and what a worker must copy from which other ones.

KV is a box: layers x KV heads x positions. A worker of an instance holds a box of it: an interval of layers
(pipeline parallel), an interval of heads (tensor parallel), and positions in intervals (where several
instances share a sequence). What one worker needs of another is the intersection of their boxes.

    needs of a target worker, minus what earlier sources gave = what this source gives     (each cell once)
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, order=True)
class Interval:
    """Whole numbers [first, past)."""

    first: int
    past: int

    def __len__(self) -> int:
        return max(0, self.past - self.first)

    def __and__(self, other: "Interval") -> "Interval":
        first = max(self.first, other.first)
        return Interval(first, max(first, min(self.past, other.past)))

    def __sub__(self, other: "Interval") -> "tuple[Interval, ...]":
        """What is left: at most two intervals, none of them empty."""
        shared = self & other
        if not shared:
            return (self,) if self else ()
        sides = Interval(self.first, shared.first), Interval(shared.past, self.past)
        return tuple(side for side in sides if side)


@dataclass(frozen=True, slots=True)
class Box:
    """Part of a request's KV."""

    layers: Interval
    heads: Interval
    """KV heads."""
    positions: tuple[Interval, ...]
    """Ascending, none empty, none touching another."""

    @property
    def cells(self) -> int:
        """Layers x heads x positions."""
        return len(self.layers) * len(self.heads) * sum(map(len, self.positions))

    def __and__(self, other: "Box") -> "Box":
        shared = (mine & theirs for mine in self.positions for theirs in other.positions)
        positions = tuple(sorted(interval for interval in shared if interval))
        return Box(self.layers & other.layers, self.heads & other.heads, positions)

    def __sub__(self, other: "Box") -> "tuple[Box, ...]":
        """What is left, as boxes that do not overlap."""
        shared = self & other
        if not shared.cells:
            return (self,) if self.cells else ()
        left = [replace(self, layers=layers) for layers in self.layers - shared.layers]
        left += [Box(shared.layers, heads, self.positions) for heads in self.heads - shared.heads]
        positions = self.positions
        for taken in shared.positions:
            positions = tuple(part for interval in positions for part in interval - taken)
        if positions:
            left.append(Box(shared.layers, shared.heads, positions))
        return tuple(left)


@dataclass(frozen=True, slots=True)
class Shard:
    """What a worker holds of every request of its instance."""

    layers: Interval
    heads: Interval
    """KV heads."""

    def box(self, positions: Iterable[Interval]) -> Box:
        """Its part of these positions."""
        return Box(self.layers, self.heads, tuple(positions))


@dataclass(frozen=True, slots=True)
class Part:
    """One worker copies `box` from another one."""

    source: int
    """Index of the source among those that were given."""
    box: Box


def shards(layers: int, kv_heads: int, tp: int = 1, pp: int = 1) -> tuple[Shard, ...]:
    """The workers of an instance, in the order of their ranks: those of the first stage first.

    Stages get equal numbers of layers, the first ones one more where it does not divide. With more workers
    than heads each head is on neighbouring workers, equally often.

    Raises:
        ValueError: heads cannot be divided so, or there are more stages than layers.
    """
    if not 1 <= pp <= layers:
        raise ValueError(f"{layers} layers in {pp} stages: use 1 to {layers} stages")
    if tp < 1 or (kv_heads % tp and tp % kv_heads):
        raise ValueError(f"{kv_heads} KV heads on {tp} workers: one must divide the other")
    share = max(1, kv_heads // tp)
    stages = (Interval(-(-at * layers // pp), -(-(at + 1) * layers // pp)) for at in range(pp))
    firsts = [rank * kv_heads // tp for rank in range(tp)]
    return tuple(Shard(stage, Interval(head, head + share)) for stage in stages for head in firsts)


def parts(needed: Box, held: Sequence[Box], turn: int = 0) -> tuple[Part, ...]:
    """What a worker that needs `needed` copies from workers that hold `held`: each cell exactly once.

    Args:
        turn: where several hold the same, the search begins with this one, so that targets which differ in
            it share the work among them.

    Raises:
        ValueError: nobody holds some of it.
    """
    missing: tuple[Box, ...] = (needed,) if needed.cells else ()
    found: list[Part] = []
    for step in range(len(held)):
        source = (turn + step) % len(held)
        shared = (box & held[source] for box in missing)
        found += [Part(source, box) for box in shared if box.cells]
        missing = tuple(rest for box in missing for rest in box - held[source])
    if missing:
        raise ValueError(f"no source holds {missing[0]}")
    return tuple(found)
