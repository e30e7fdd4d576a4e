"""`Copies`: moves in virtual time. One copy lane per target, and links whose bandwidth moves share.

A lane takes its moves one after another, in the order of their ids. Moves of different lanes share what they
have in common:

    on one node          the source's way out, the target's way in (each instance has `local` both ways)
    between two nodes    the source node's way out, the target node's way in (each node has `remote`)

A move gets, on each of its links, an equal share of it, and runs at the smallest of its shares. What a slow
move leaves unused on one link is not given to the others there, so times err to the slow side.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil

from plait.spec.cluster import Link
from plait.spec.errors import UserError
from plait.spec.event import Moved, MoveFailed
from plait.spec.move import Move

NS = 1_000_000_000
Wire = tuple[str, int]
"""One direction of one instance's or node's connection."""


@dataclass(frozen=True, slots=True)
class Network:
    """What moves travel on, and how much they carry."""

    token_bytes: int
    """KV of one token over all layers (`ModelShape.kv_bytes_per_token`)."""
    local: Link
    """Of each instance, to the others of its node; as much in as out."""
    remote: Link
    """Of each node, to the others; as much in as out."""
    layers: int = 1
    """Parts in which a move follows a step that is still being computed: 1 waits for the whole step."""

    def __post_init__(self) -> None:
        if min(self.token_bytes, self.layers, self.local.bandwidth, self.remote.bandwidth) <= 0:
            raise UserError("a network needs bandwidths, layers and bytes per token above 0", "network")


@dataclass(slots=True)
class Copy:
    """The move that a lane has in hand."""

    move: Move
    wires: tuple[Wire, ...]
    bandwidth: float
    """Bytes/s if it has its links to itself."""
    left_bytes: float
    begin_ns: int
    """When its first byte leaves."""
    floor_ns: int
    """It ends no earlier: the last layer is computed only then."""
    rate: float = 0.0
    """Bytes/s at present; 0 before it begins and once all bytes are there."""

    def due_ns(self, now_ns: int) -> int:
        """When something happens to it next, if nothing else does first."""
        if self.left_bytes <= 0:
            return max(now_ns, self.floor_ns)
        if self.rate == 0:
            return max(now_ns, self.begin_ns)
        return now_ns + max(1, ceil(self.left_bytes / self.rate * NS))


@dataclass(slots=True)
class Lane:
    """Moves into one instance."""

    waiting: deque[Move] = field(default_factory=deque)
    copy: Copy | None = None


class Copies:
    """See the module. Times are those of the world; nothing is answered before it is asked for."""

    def __init__(self, network: Network, nodes: Mapping[int, int]) -> None:
        """`nodes`: instance -> node; instances that are not named are on node 0."""
        self._network = network
        self._nodes = dict(nodes)
        self._lanes: dict[int, Lane] = {}
        self._failed: deque[tuple[int, MoveFailed]] = deque()
        """(time, answer) of moves that were cut off."""
        self._followed: dict[int, tuple[int, int]] = {}
        """Move that waits for its lane -> start and end of the step that it follows."""
        self._now_ns = 0
        """Up to when bytes are counted."""
        self._next_ns: int | None = None

    def begin(self, move: Move, now_ns: int, follows: tuple[int, int] | None = None) -> None:
        """A move joins its target's lane. `follows`: start and end of the step that writes what it moves."""
        self._advance(now_ns)
        if follows is not None:
            self._followed[move.id] = follows
        self._lanes.setdefault(move.target.instance, Lane()).waiting.append(move)
        self._share()

    def cancel(self, move: int, now_ns: int) -> None:
        """A move that is not answered yet fails at once."""
        self._advance(now_ns)
        for lane in self._lanes.values():
            self._drop(lane, [each for each in self._moves(lane) if each.id == move], "cancelled")
        self._share()

    def lost(self, instance: int, now_ns: int) -> None:
        """Moves to an instance are forgotten with it; moves from it fail."""
        self._advance(now_ns)
        gone = self._lanes.pop(instance, Lane())
        for move in self._moves(gone):
            self._followed.pop(move.id, None)
        for lane in self._lanes.values():
            orphans = [each for each in self._moves(lane) if each.source.instance == instance]
            self._drop(lane, orphans, "source lost")
        self._share()

    @property
    def next_ns(self) -> int | None:
        """When something happens next; None: no move is under way."""
        return self._next_ns

    def take(self, now_ns: int) -> Moved | MoveFailed | None:
        """Let `next_ns` come, and say what ended then, if anything did."""
        self._advance(now_ns)
        ended = self._ended(now_ns)
        self._share()
        return ended

    def _ended(self, now_ns: int) -> Moved | MoveFailed | None:
        if self._failed and self._failed[0][0] <= now_ns:
            return self._failed.popleft()[1]
        for lane in self._lanes.values():
            copy = lane.copy
            if copy is not None and copy.left_bytes <= 0 and copy.floor_ns <= now_ns:
                lane.copy = None
                return Moved(copy.move.id)
        return None

    @staticmethod
    def _moves(lane: Lane) -> list[Move]:
        return [*([lane.copy.move] if lane.copy else []), *lane.waiting]

    def _drop(self, lane: Lane, moves: list[Move], reason: str) -> None:
        for move in moves:
            if lane.copy is not None and lane.copy.move is move:
                lane.copy = None
            else:
                lane.waiting.remove(move)
            self._followed.pop(move.id, None)
            self._failed.append((self._now_ns, MoveFailed(move.id, reason)))

    def _advance(self, now_ns: int) -> None:
        """Count the bytes that travelled since the last change."""
        for lane in self._lanes.values():
            if lane.copy is not None and lane.copy.rate:
                copy = lane.copy
                copy.left_bytes -= copy.rate * (now_ns - self._now_ns) / NS
                if copy.left_bytes < copy.rate / NS:  # less than a nanosecond's worth is rounding
                    copy.left_bytes = 0.0
        self._now_ns = now_ns

    def _share(self) -> None:
        """Start what can start, divide the links anew, and see what comes next."""
        now_ns = self._now_ns
        load: dict[Wire, int] = {}
        copies: list[Copy] = []
        for lane in self._lanes.values():
            if lane.copy is None and lane.waiting:
                lane.copy = self._start(lane.waiting.popleft())
            if lane.copy is not None:
                copies.append(lane.copy)
                lane.copy.rate = 0.0
                if lane.copy.left_bytes > 0 and lane.copy.begin_ns <= now_ns:
                    for wire in lane.copy.wires:
                        load[wire] = load.get(wire, 0) + 1
        for copy in copies:
            if copy.left_bytes > 0 and copy.begin_ns <= now_ns:
                copy.rate = min(copy.bandwidth / load[wire] for wire in copy.wires)
        dues = [copy.due_ns(now_ns) for copy in copies] + [at_ns for at_ns, _ in self._failed]
        self._next_ns = min(dues, default=None)

    def _start(self, move: Move) -> Copy:
        source, target = move.source.instance, move.target.instance
        here, there = self._nodes.get(source, 0), self._nodes.get(target, 0)
        if here == there:
            link, wires = self._network.local, (("out", source), ("in", target))
        else:
            link, wires = self._network.remote, (("node out", here), ("node in", there))
        size = float(move.count * self._network.token_bytes)
        begin_ns, floor_ns = self._now_ns, 0
        if (follows := self._followed.pop(move.id, None)) is not None:
            start_ns, end_ns = follows
            parts = self._network.layers
            begin_ns = max(begin_ns, start_ns + ceil((end_ns - start_ns) / parts))
            floor_ns = end_ns + link.latency_ns + ceil(size / parts / link.bandwidth * NS)
        return Copy(move, wires, link.bandwidth, size, begin_ns + link.latency_ns, floor_ns)
