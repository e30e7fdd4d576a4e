"""`Ensemble`: requests on elastic instances, where each has KV, who computes its next token, and their steps.

What one instance alone has in `Seat` and `Batcher` is here for groups: a request's tokens lie on several
instances (`Live.parts`), each new one with its master. `Elasticity` decides; this carries out in the ledger.

    enter -> compute (prompt, in one step or several) -> answered: master chosen -> decode ... -> unseat
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from plait.serving.groups import Group, groups_of
from plait.serving.ledger import KvLedger
from plait.serving.live import Counts, Flight, Live, Relocation, Seat
from plait.serving.retention import retain
from plait.serving.roster import Roster
from plait.spec.step import Keep, Row, Span, Step

Made = tuple[Step, Flight]


@dataclass(slots=True)
class Decodes:
    """What a step takes of rows that decode."""

    rows: list[Row] = field(default_factory=list)
    """Of those with new slots or a new master."""
    grown: list[Live] = field(default_factory=list)
    """Their requests."""
    again: list[Live] = field(default_factory=list)
    opened: list[int] = field(default_factory=list)
    context: int = 0
    """Tokens that `again` attends to."""


class Ensemble:
    """Owns the requests on elastic instances. `yielded` collects those that go back to the queue."""

    def __init__(
        self, roster: Roster, ledger: KvLedger, counts: Counts, model: str, yielded: list[Live]
    ) -> None:
        self._roster = roster
        self.seats = roster.elastic
        self.prefillers = roster.prefillers
        self.decoders = roster.decoders
        self._all = roster.seats
        self.lives: dict[int, Live] = {}
        self.partial: dict[int, Live] = {}
        """Their prompts are computed in part, and no step of theirs is in flight."""
        self.decoding: dict[int, Live] = {}
        self.computing: dict[int, int] = {}
        """Instance -> steps of prompts in flight on it."""
        self._ledger = ledger
        self._counts = counts
        self._model = model
        self._yielded = yielded
        self.reserved: set[int] = set()
        """Instances whose rows take a step before prompts may be computed there."""
        self._groups: list[Group] | None = None
        self._said: dict[int, str] = {}
        """Request -> why it has another master, until a step says so."""

    @property
    def groups(self) -> list[Group]:
        """Those in which rows decode, as they share KV now."""
        if self._groups is None:
            self._groups = groups_of(self.decoding.values())
        return self._groups

    def unused(self, instance: int) -> int:
        """Slots that nobody holds."""
        return self._ledger.capacity(instance) - self._ledger.used(instance)

    @property
    def apart(self) -> bool:
        """Some instances take prompts only: what they compute goes on elsewhere."""
        return self._roster.apart

    def away_from_home(self, live: Live) -> tuple[int, ...]:
        """Instances that keep some of a request and do not decode. (Who retires finishes what it has.)"""
        seats = [self.seats[instance] for instance in live.instances]
        return tuple(seat.instance for seat in seats if not (seat.retiring or seat.role.decodes))

    def beside_rows(self) -> dict[int, Live]:
        """Requests with KV where rows decode."""
        there = {instance for live in self.decoding.values() for instance in live.instances}
        return {id: live for id, live in self.lives.items() if not there.isdisjoint(live.instances)}

    @property
    def stuck(self) -> bool:
        """Where prompts are computed nothing is held but by prompts that are computed in part."""
        pool, lives = self.prefillers.keys(), self.lives.values()
        return all(live.id in self.partial for live in lives if not pool.isdisjoint(live.instances))

    def free(self) -> list[Seat]:
        """Instances that compute no prompts and may take some."""
        seats = self._free(self.prefillers)
        return [seat for seat in seats if seat.instance not in self.reserved] if self.reserved else seats

    def able(self) -> list[Seat]:
        """Instances that compute no prompts and may decode."""
        return self._free(self.decoders)

    def _free(self, pool: dict[int, Seat]) -> list[Seat]:
        return [seat for seat in pool.values() if not (seat.retiring or self.computing.get(seat.instance))]

    def pausing(self, group: Group) -> bool:
        """An instance of it computes prompts, so no row of it can go on."""
        return any(self.computing.get(member) for member in group.members)

    def idle(self) -> list[Seat]:
        """Of those that may take prompts, the ones on which nothing decodes, or nothing can just now."""
        return self._idle(self.free())

    def spare(self) -> list[Seat]:
        """The same of those that may decode."""
        return self._idle(self.able())

    def _idle(self, seats: list[Seat]) -> list[Seat]:
        groups = [group for group in self.groups if not self.pausing(group)]
        busy = {member for group in groups for member in group.members}
        return [seat for seat in seats if seat.instance not in busy]

    # ---- a request's life here -------------------------------------------------------------------

    def enter(self, live: Live) -> None:
        """A request comes here, with nothing computed."""
        self.lives[live.id] = live
        live.parts, live.kept, live.away, live.master = {}, [], 0, -1
        live.planned, live.room, live.opened, live.leaving, live.bypassed = 0, 0, False, False, 0
        live.passing, live.step = False, -1
        live.told, live.synced = {}, ()

    def enter_behind(self, live: Live, instance: int, hashes: tuple[int, ...]) -> None:
        """A request comes here whose first blocks an instance has."""
        self.enter(live)
        tokens = len(hashes) * self._ledger.page
        self._ledger.open(instance, live.id, hashes)
        self.seats[instance].lives[live.id] = live
        live.parts, live.kept, live.planned = {instance: tokens}, [Keep(instance, 0, tokens)], tokens
        self.partial[live.id] = live

    def unseat(self, live: Live) -> None:
        """Give back all that a request has here."""
        assert not live.pinned
        assert live.parts is not None
        self.rest(live)
        self._said.pop(live.id, None)
        for instance in live.parts:
            if instance in self.seats:
                self._ledger.release(instance, live.id)
                del self.seats[instance].lives[live.id]
        for instance in live.told:
            if instance in self._all:  # it may have taken another role after it kept nothing any more
                self._all[instance].closed.append(live.id)
        del self.lives[live.id]
        live.parts, live.kept, live.told, live.master, live.leaving = None, [], {}, -1, False

    def rest(self, live: Live) -> None:
        """Issue no more steps for a request; it stays for those in flight."""
        self.partial.pop(live.id, None)
        if self.decoding.pop(live.id, None):
            self._groups = None

    def preempt(self, live: Live) -> None:
        """A request yields its slots to older ones."""
        self._counts.preemptions += 1
        self.send_back(live)

    def send_back(self, live: Live) -> None:
        """A request loses its place; its slots stay pinned until its steps in flight are answered."""
        self.rest(live)
        live.leaving = True
        if not live.pinned:
            self.unseat(live)
            self._yielded.append(live)

    def answered(self, live: Live) -> None:
        """A step of its prompt was answered, and nothing drawn: more of it is to be computed."""
        self.partial[live.id] = live

    def begin_decode(self, live: Live, master: int, why: str) -> None:
        """Its first token is drawn, and all it has is where it may decode."""
        self.appoint(live, master, why)
        self.decoding[live.id] = live

    def appoint(self, live: Live, master: int, why: str) -> None:
        """The request's next tokens are computed and kept by this instance. Nothing is moved."""
        self.count(live)
        self._hold(live, master)
        live.master, live.away = master, live.planned - _parts(live)[master]
        live.room, live.opened = 0, False
        self._groups = None
        if why:
            self._said[live.id] = why

    def count(self, live: Live) -> None:
        """Note what a request's master has kept since it became that."""
        past = live.kept[-1].first + live.kept[-1].count
        if past < live.planned:
            live.kept.append(Keep(live.master, past, live.planned - past))
            _parts(live)[live.master] = live.planned - live.away

    def resettle(self, relocation: Relocation) -> None:
        """All of a request that was on its way has arrived. Who keeps nothing of it now drops out: where it
        came from, and a master that had been appointed and had computed nothing."""
        live, before = relocation.live, _parts(relocation.live)
        live.kept, live.parts, live.relocation = relocation.kept, {}, None
        for keep in live.kept:
            live.parts[keep.instance] = live.parts.get(keep.instance, 0) + keep.count
        for instance in before:
            if instance in live.parts:
                continue
            self._ledger.release(instance, live.id)
            del self.seats[instance].lives[live.id]
            if instance in live.told:  # it must not take part with what it had
                del live.told[instance]
                self.seats[instance].closed.append(live.id)
        live.master, live.away = -1, 0

    def _hold(self, live: Live, instance: int) -> None:
        assert live.parts is not None
        if instance not in live.parts:
            self._ledger.open(instance, live.id)
            self.seats[instance].lives[live.id] = live
            live.parts[instance] = 0

    def lost(self, instance: int) -> None:
        """An instance is gone: whoever comes back in its place keeps and knows nothing of any request. (One
        that a new master was appointed for may have a step elsewhere in flight, and leaves after it.)"""
        for live in self.lives.values():
            _parts(live).pop(instance, None)
            live.told.pop(instance, None)
            if instance in live.synced:
                live.synced = ()

    # ---- steps -----------------------------------------------------------------------------------

    def compute(
        self, lives: Sequence[Live], counts: Sequence[int], members: Iterable[int], step: int, why: str = ""
    ) -> Made | None:
        """A step in which instances compute the next known tokens of requests together; rows that decode on
        these alone take one more token in it. None: there is no room for the prompts on these.

        Args:
            counts: how many tokens of each.
            members: they include all that keep some of a request already.
            why: the reason, in words.
        """
        group = tuple(sorted(members))
        kept = retain(
            {live.id: (live.planned, count) for live, count in zip(lives, counts, strict=True)},
            {instance: self.unused(instance) for instance in group},
            {instance: self._ledger.used(instance) for instance in group},
            {
                (live.id, i): self._ledger.held(i, live.id) - n
                for live in lives
                for i, n in _parts(live).items()
            },
            self._ledger.page,
            [instance for instance in group if instance not in self.decoders],
        )
        if kept is None:
            return None
        rows = [
            self._prompt(live, count, group, kept[live.id]) for live, count in zip(lives, counts, strict=True)
        ]
        opened = [live.id for live in lives if not live.opened]
        for live in lives:
            live.opened = True
        riders = Decodes()
        for each in self.groups:
            if not self.pausing(each) and set(each.members).issubset(group):
                self._decodes(each, group, riders)
        for instance in group:
            self.computing[instance] = self.computing.get(instance, 0) + 1
        riders.rows[:0], riders.grown[:0], riders.opened[:0] = rows, lives, opened
        made = self._made(step, group, riders, why)
        made[1].prompts = True
        return made

    def _prompt(self, live: Live, count: int, group: tuple[int, ...], kept: tuple[Keep, ...]) -> Row:
        parts, spans = _parts(live), list[Span]()
        live.opened &= all(member in live.synced for member in group)
        live.synced = group
        for keep in kept:
            self._hold(live, keep.instance)
            grown = self._grow(live, keep.instance, parts[keep.instance] + keep.count)
            assert grown is not None, "the plan promised room that is not there"
            spans += grown
            parts[keep.instance] += keep.count
        live.kept += kept
        start, stride = live.planned, len(group)
        live.planned += count
        live.flying += 1
        live.bypassed = 0
        self.partial.pop(live.id, None)
        draws, master = live.planned == live.known, group[(count - 1) % stride]
        if not live.opened:
            kept, spans = self._tell(live, group)
        return Row(live.id, start, count, stride, True, draws, tuple(spans), master, kept)

    def _tell(self, live: Live, group: tuple[int, ...]) -> tuple[tuple[Keep, ...], list[Span]]:
        """A step introduces a row, with all its slots and all that is kept in them."""
        self.count(live)
        for member in group:
            live.told[member] = None
            seat = self.seats[member]
            if live.id in seat.closed:
                seat.closed.remove(live.id)
        spans = [Span(i, 0, self._ledger.extents(i, live.id)) for i in _parts(live)]
        return tuple(live.kept), [span for span in spans if span.extents]

    def decode(self, group: Group, step: int) -> Made | None:
        """One more token of every row of a group that can go on; None: no row can."""
        found = Decodes()
        self._decodes(group, group.members, found)
        return self._made(step, group.members, found) if found.grown or found.again else None

    def _decodes(self, group: Group, members: tuple[int, ...], found: Decodes) -> None:
        """The next token of every row of a group that can go on, in a step of `members`."""
        back = {id for member in members for id in self.seats[member].closed}
        for live in tuple(group.lives.values()):
            if live.id in back:  # a member knows it from an earlier stay: it must learn that this is another
                live.room, live.opened = 0, False
            if live.room:
                live.room -= 1
                live.planned += 1
                live.flying += 1
                found.context += live.planned
                found.again.append(live)
            elif live.id in self.decoding and (row := self._next(live, members, found.opened)):
                found.rows.append(row)
                found.grown.append(live)

    def _next(self, live: Live, members: tuple[int, ...], opened: list[int]) -> Row | None:
        """The next token of a row that needs slots first, or has a new master. None: not in this step."""
        if live.undrawn <= 0:
            self.rest(live)  # every token it may draw is in flight
            return None
        if not live.opened and live.flying:
            return None  # the new master must be told the token that is being drawn
        here = live.planned - live.away
        spans = self._grow(live, live.master, here + 1)
        if spans is None:
            return None
        kept: tuple[Keep, ...] = ()
        if not live.opened:
            live.opened = True
            opened.append(live.id)
            kept, spans = self._tell(live, members)
        row = Row(live.id, live.planned, 1, 1, False, True, tuple(spans), live.master, kept)
        live.planned += 1
        live.flying += 1
        live.room = max(0, min(self._ledger.held(live.master, live.id) - here - 1, live.undrawn))
        return row

    def _grow(self, live: Live, instance: int, tokens: int) -> list[Span] | None:
        """Slots for so many tokens of a request on an instance, as the span that is new. None: no room."""
        first = self._ledger.held(instance, live.id)
        extents = self._ledger.grow(instance, live.id, tokens)
        if extents is None:
            return None
        return [Span(instance, first, extents)] if extents else []

    def _made(self, step: int, group: tuple[int, ...], found: Decodes, why: str = "") -> Made:
        seats = tuple(self.seats[member] for member in group)
        closed = dict.fromkeys(id for seat in seats for id in seat.closed if id not in self.lives)
        for seat in seats:
            # One that is here again was closed at this member, but may be known to others of this group.
            seat.closed = [id for id in seat.closed if id in self.lives]
        again, opened = tuple([live.id for live in found.again]), tuple(found.opened)
        said = [self._said.pop(id) for id in opened if id in self._said]
        why = "; ".join(each for each in dict.fromkeys((why, *said)) if each)
        rows, context = tuple(found.rows), found.context
        made = Step(step, group, rows, again, opened, tuple(closed), context, self._model, why=why)
        return made, Flight(seats, (*found.grown, *found.again))

    def landed(self, flight: Flight) -> None:
        """A step with prompts was answered, or will never be."""
        for seat in flight.seats:
            left = self.computing[seat.instance] - 1
            if left:
                self.computing[seat.instance] = left
            else:
                del self.computing[seat.instance]


def _parts(live: Live) -> dict[int, int]:
    assert live.parts is not None
    return live.parts
