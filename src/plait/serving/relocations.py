"""`Relocations`: KV that goes from some elastic instances to others, in pieces of any size.

    prompt computed where nothing decodes -> waits there -> pulled into the decode pool -> decodes
    an instance is to be freed -> its rows rest -> their KV moves -> they go on elsewhere

The memory of instances that only prefill is the queue, as in `Handover`. A request has slots at both ends
until all of its moves are answered; until then no step of it is issued, and after a failure it is whole at
its source.
"""

from bisect import insort
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from plait.serving import reasons
from plait.serving.admission import Admission
from plait.serving.ensemble import Ensemble
from plait.serving.handover import HandoverConfig
from plait.serving.ledger import KvLedger
from plait.serving.live import Counts, Live, Relocation, Seat
from plait.serving.masters import Masters
from plait.serving.pools import Pools
from plait.spec.move import Cancel, Move
from plait.spec.step import Keep, Span

Piece = tuple[Keep, int]
"""An interval that an instance keeps, and where it goes."""


class Relocations:
    """Owns what waits to be pulled and what is being moved. `said` collects commands."""

    def __init__(
        self,
        config: HandoverConfig,
        ensemble: Ensemble,
        ledger: KvLedger,
        admission: Admission,
        pools: Pools,
        masters: Masters,
        counts: Counts,
        number: Callable[[], int],
    ) -> None:
        """`number` gives the next id of the order that steps and moves share."""
        self.config = config
        self.waiting: list[Live] = []
        """Requests to be pulled, oldest first."""
        self.resting: dict[int, tuple[Live, tuple[int, ...], str]] = {}
        """By request: rows that go on elsewhere once their steps in flight are answered, the instances that
        they leave, and why."""
        self.flying: dict[int, Relocation] = {}
        """By the id of a move."""
        self.said: list[Move | Cancel] = []
        self._ensemble = ensemble
        self._ledger = ledger
        self._admission = admission
        self._pools = pools
        self._masters = masters
        self._counts = counts
        self._number = number

    # ---- waiting -------------------------------------------------------------------------------

    def offer(self, live: Live) -> None:
        """A request is whole and no step of it is in flight: it decodes here, or waits to be pulled."""
        if self._ensemble.away_from_home(live):
            live.bypassed = 0
            insort(self.waiting, live, key=_rank)
        else:
            self._ensemble.begin_decode(live, *self._masters.first(live))

    def pull(self) -> None:
        """Give room where rows decode to those that wait, oldest first; one that finds none may be passed by
        younger ones, so often and by so many as in `Admission`."""
        for live, sources, why in tuple(self.resting.values()):
            if not live.flying:
                self._leave(live, sources, why)
        if not self.waiting:
            return
        room, config = self._pools.to_decode(), self._admission.config
        capacity = sum(self._ledger.capacity(instance) for instance in self._ensemble.decoders)
        first: Live | None = None
        look = config.look
        for live in tuple(self.waiting):
            sources = self._ensemble.away_from_home(live)
            if not sources:  # its instances decode now, or retire
                self.waiting.remove(live)
                self.offer(live)
                continue
            if live.most - self._stays(live, sources) > capacity:
                continue  # nothing that is up could ever take it, so it stands in nobody's way
            lacks = self._pools.lacks(live)
            pieces = self._pieces(live, sources) if lacks <= room else None
            if pieces:
                self.waiting.remove(live)
                room -= lacks
                self.begin(live, pieces, self._why(live, pieces))
                if first is not None:
                    first.bypassed += 1
                continue
            first = first or live
            look -= 1
            if look < 0 or first.bypassed >= config.bypass:
                break
        if first is not None and self._make_room():
            self.pull()

    def _stays(self, live: Live, sources: Collection[int]) -> int:
        """Slots of a request on instances that retire: it decodes there, though they take nothing new."""
        apart = (i for i in live.instances if i not in sources and i not in self._ensemble.decoders)
        return sum(self._ledger.held(instance, live.id) for instance in apart)

    def _make_room(self) -> bool:
        """Where instances of one pool do both phases beside those of two, they may be full of requests that
        wait: the youngest of those yields. False: room will come of itself."""
        ensemble = self._ensemble
        pool = ensemble.decoders.keys()
        there = [live for live in ensemble.lives.values() if not pool.isdisjoint(live.instances)]
        if not there or self.flying or not all(live in self.waiting for live in there):
            return False
        victim = max(there, key=_rank)
        self.waiting.remove(victim)
        ensemble.preempt(victim)
        return True

    def rest(self, live: Live, sources: tuple[int, ...], why: str) -> None:
        """A row that decodes is to go on elsewhere, with what these instances keep of it."""
        self._ensemble.rest(live)
        self.resting[live.id] = (live, sources, why)

    def _leave(self, live: Live, sources: tuple[int, ...], why: str) -> None:
        """No step of a row is in flight any more: its KV moves, all to one instance. Where there is not the
        room that there was, it goes on where it is."""
        del self.resting[live.id]
        self._ensemble.count(live)
        gone = [keep for keep in live.kept if keep.instance in sources]
        others = [seat.instance for seat in self.crowd() if seat.instance not in live.instances]
        pieces = divided(gone, {instance: self._ensemble.unused(instance) for instance in others})
        if pieces and len({target for _, target in pieces}) == 1:
            self.begin(live, pieces, why)
        else:
            self.offer(live)

    def crowd(self) -> list[Seat]:
        """Instances where rows decode and no prompts are computed, the fullest first."""
        busy = {member for group in self._ensemble.groups for member in group.members}
        seats = [seat for seat in self._ensemble.able() if seat.instance in busy]
        return sorted(seats, key=lambda seat: (-self._ledger.used(seat.instance), seat.instance))

    def _why(self, live: Live, pieces: Sequence[Piece]) -> str:
        sources = tuple(dict.fromkeys(keep.instance for keep, _ in pieces))
        targets = tuple(dict.fromkeys(target for _, target in pieces))
        return reasons.of_pull(live.planned, sources, targets, len(self.waiting))

    def _pieces(self, live: Live, sources: Collection[int]) -> list[Piece] | None:
        """What of a request goes from `sources` to which of the instances that decode; None: it has to wait,
        for room, for a copy lane or for fewer rows."""
        ensemble = self._ensemble
        rows = self._admission.config.max_rows * len(ensemble.decoders)
        if len(ensemble.decoding) + len(self.flying) >= rows:
            return None
        gone = [keep for keep in live.kept if keep.instance in sources]
        lanes = [seat for seat in ensemble.able() if seat.arriving < self.config.pulls]
        able = [seat for seat in lanes if seat.instance not in live.instances]
        able.sort(key=lambda seat: (self._ledger.used(seat.instance), seat.instance))
        rooms = {seat.instance: ensemble.unused(seat.instance) for seat in able}
        return divided(gone, rooms)

    def holds(self, live: Live) -> bool:
        """It waits or is on its way: all of it is computed, and no step of it is in flight."""
        return live.relocation is not None or live in self.waiting

    # ---- between instances ---------------------------------------------------------------------

    def begin(self, live: Live, pieces: Sequence[Piece], why: str) -> None:
        """Say the moves of a request's intervals. What it keeps elsewhere stays."""
        assert not live.pinned
        targets: dict[int, int] = {}
        for keep, target in pieces:
            targets[target] = targets.get(target, 0) + keep.count
        sources = tuple(dict.fromkeys(keep.instance for keep, _ in pieces))
        relocation = Relocation(live, _merged(live, pieces), targets, sources)
        for target, tokens in targets.items():
            self._ledger.open(target, live.id)
            grown = self._ledger.grow(target, live.id, tokens)
            assert grown is not None, "there is not the room that there was"
            self._ensemble.seats[target].lives[live.id] = live
        live.relocation = relocation
        self._counts.moves += 1
        self._counts.moved_tokens += sum(targets.values())
        for span, other, count in self._spans(live, pieces):
            self._say(relocation, Move(self._number(), live.id, count, span, other, why=why))

    def _spans(self, live: Live, pieces: Sequence[Piece]) -> Iterator[tuple[Span, Span, int]]:
        """Slots of each piece, at both ends."""
        number = _numbers(live)
        arrived: dict[int, int] = {}
        for keep, target in pieces:
            here, there = keep.instance, arrived.get(target, 0)
            given = self._ledger.slots(here, live.id, number(keep), keep.count)
            taken = self._ledger.slots(target, live.id, there, keep.count)
            arrived[target] = there + keep.count
            yield Span(here, keep.first, given), Span(target, keep.first, taken), keep.count

    def _say(self, relocation: Relocation, move: Move) -> None:
        relocation.flying[move.id] = move
        self.flying[move.id] = relocation
        self._ensemble.seats[move.target.instance].arriving += 1
        self.said.append(move)

    def answered(self, id: int, arrived: bool) -> Relocation | None:
        """A move was answered. Its relocation, if it waits for no other one."""
        relocation = self.flying.pop(id, None)
        if relocation is None:
            return None
        move = relocation.flying.pop(id)
        self._ensemble.seats[move.target.instance].arriving -= 1
        if not arrived and not relocation.broken:
            if relocation.tries < self.config.retries:
                relocation.tries += 1
                self._counts.move_retries += 1
                self._say(relocation, replace(move, id=self._number()))
                return None
            relocation.spent = True
            self._break(relocation)
        return None if relocation.flying else relocation

    def revoke(self, live: Live) -> None:
        """What is under way for this request is of no use: ask for its answers, which free the slots."""
        self.resting.pop(live.id, None)
        if live in self.waiting:
            self.waiting.remove(live)
        if live.relocation is not None and not live.relocation.broken:
            self._break(live.relocation)

    def _break(self, relocation: Relocation) -> None:
        relocation.broken = True
        self.said += [Cancel(move) for move in relocation.flying]

    def lost(self, relocation: Relocation, instance: int) -> Relocation | None:
        """An instance that it needs is gone. The relocation, if no answer will come any more."""
        for id, move in tuple(relocation.flying.items()):
            if move.target.instance == instance:  # nobody will answer
                del relocation.flying[id], self.flying[id]
        relocation.targets.pop(instance, None)
        if not relocation.broken:
            self._break(relocation)
        return None if relocation.flying else relocation

    def retreat(self, relocation: Relocation) -> None:
        """Give back the slots at the targets; the request is where it was."""
        live = relocation.live
        live.relocation = None
        for target in relocation.targets:
            self._ledger.release(target, live.id)
            del self._ensemble.seats[target].lives[live.id]

    def arrive(self, relocation: Relocation) -> None:
        """Everything is at the targets: the request goes on there."""
        self._ensemble.resettle(relocation)
        self.offer(relocation.live)


def divided(gone: Sequence[Keep], rooms: Mapping[int, int]) -> list[Piece] | None:
    """Intervals over instances with so many free slots: all to the first one that has room for them, else to
    as many as it takes, in order. None: there is not room for all."""
    gone = _joined(gone)
    count = sum(keep.count for keep in gone)
    whole = next((instance for instance, room in rooms.items() if room >= count), None)
    if whole is not None:
        return [(keep, whole) for keep in gone]
    left = dict(sorted(rooms.items(), key=lambda item: (-item[1], item[0])))
    found: list[Piece] = []
    for keep in gone:
        first, past = keep.first, keep.first + keep.count
        while first < past:
            target = next((instance for instance, room in left.items() if room), None)
            if target is None:
                return None
            taken = min(past - first, left[target])
            found.append((Keep(keep.instance, first, taken), target))
            left[target] -= taken
            first += taken
    return found


def _merged(live: Live, pieces: Sequence[Piece]) -> list[Keep]:
    """Who keeps what when all has arrived."""
    sources = {keep.instance for keep, _ in pieces}
    kept = [Keep(target, keep.first, keep.count) for keep, target in pieces]
    kept += [keep for keep in live.kept if keep.instance not in sources]
    return _joined(sorted(kept, key=lambda keep: keep.first))


def _joined(kept: Sequence[Keep]) -> list[Keep]:
    """Intervals, of which no two that touch are on one instance."""
    found: list[Keep] = []
    for keep in kept:
        last = found[-1] if found else None
        if last is not None and last.instance == keep.instance and last.first + last.count == keep.first:
            found[-1] = Keep(keep.instance, last.first, last.count + keep.count)
        else:
            found.append(keep)
    return found


def _numbers(live: Live) -> Callable[[Keep], int]:
    """How many tokens of a request an instance keeps before one that is in an interval of its own."""
    kept = tuple(live.kept)

    def number(piece: Keep) -> int:
        mine = (keep for keep in kept if keep.instance == piece.instance)
        return sum(max(0, min(keep.count, piece.first - keep.first)) for keep in mine)

    return number


def _rank(live: Live) -> int:
    return live.order
