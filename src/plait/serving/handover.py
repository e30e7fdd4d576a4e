"""`Handover`: requests between two instances: the one that computed their prompt and the one that goes on.

    prompt computed -> waits at its source -> pulled: slots at both ends -> Moved -> decodes at the target
                            ^                     |  |
                            '-- target lost ------'  '-- failed too often, or source lost -> recomputed

The memory of instances that prefill is the queue: a request keeps its KV there until an instance that decodes
has room for all the rest of it. What has slots at both ends keeps them until the move is answered.
"""

from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass, replace

from plait.serving.admission import Admission
from plait.serving.batcher import Batcher
from plait.serving.ledger import KvLedger
from plait.serving.live import Counts, Live, Seat, Transfer
from plait.serving.roster import Roster
from plait.spec.move import Cancel, Move
from plait.spec.step import Span


@dataclass(frozen=True, slots=True)
class HandoverConfig:
    """How requests go from the instance that prefills them to the one that decodes them."""

    pulls: int = 4
    """Moves in flight into one instance; the others wait where they are and may still go elsewhere."""
    retries: int = 2
    """Times that a failed move is tried again before the request is recomputed."""
    held_share: float = 1.0
    """Share of an instance's slots that requests waiting to be pulled may hold before it takes no more
    prompts."""
    overlap: bool = False
    """Move while the last step of a prompt is still being computed; needs workers that can."""


class Handover:
    """Owns what waits to be pulled and what is being moved. `said` collects commands."""

    def __init__(
        self,
        config: HandoverConfig,
        roster: Roster,
        ledger: KvLedger,
        admission: Admission,
        batcher: Batcher,
        counts: Counts,
        number: Callable[[], int],
    ) -> None:
        """`number` gives the next id of the order that steps and moves share."""
        self.config = config
        self.waiting: list[Live] = []
        """Requests to be pulled, oldest first."""
        self.flying: dict[int, Transfer] = {}
        """By the id of the move."""
        self.blocked = False
        """The oldest that waits finds no room: instances that decode take no prompts meanwhile."""
        self.said: list[Move | Cancel] = []
        self._seats = roster.seats
        self._ledger = ledger
        self._admission = admission
        self._batcher = batcher
        self._counts = counts
        self._number = number

    # ---- waiting -------------------------------------------------------------------------------

    def offer(self, live: Live) -> None:
        """A request's prompt is computed (or, with overlap, its last step is issued): it may be pulled."""
        if live.transfer is not None:
            if live.transfer.done:
                self._arrive(live.transfer)
        elif self._seats[live.instance].retiring:
            self._adopt(self._seats[live.instance], live)
        elif not live.held and live.undrawn > 0:
            self._admission.presume(live)
            live.held, live.bypassed = True, 0
            self._seats[live.instance].held_slots += live.least
            insort(self.waiting, live, key=_rank)

    def send_off(self, seat: Seat, live: Live) -> None:
        """A request that decodes on an instance is to go on elsewhere, once its steps in flight are
        answered; where these draw all that it may draw, it ends there."""
        if live.undrawn <= 0:
            return
        self._batcher.idle(seat, live)
        seat.promised -= live.most
        live.least = self._ledger.whole(max(live.known, live.planned))
        live.passing, live.step = True, max(live.step, 0)  # a request is offered with no step in flight
        seat.promised += live.least
        if not live.flying:
            self.offer(live)

    def withdraw(self, live: Live) -> None:
        """A request does not wait to be pulled any more."""
        if live.held:
            live.held = False
            self.waiting.remove(live)
            if seat := self._seats.get(live.instance):
                seat.held_slots -= live.least

    def stay(self, seat: Seat) -> None:
        """An instance finishes what it has: those that wait there to be pulled decode there."""
        for live in [each for each in self.waiting if each.instance == seat.instance]:
            self._adopt(seat, live)

    def full(self, seat: Seat) -> bool:
        """So much waits on an instance that it should take no more prompts."""
        return seat.held_slots > self.config.held_share * self._ledger.capacity(seat.instance)

    def pull(self) -> None:
        """Give room at instances that decode to those that wait, oldest first; one that finds none may be
        passed by younger ones, so often and by so many as in `Admission`."""
        self.blocked = False
        if not (self.waiting and any(seat.decodes for seat in self._seats.values())):
            return
        first: Live | None = None
        look = self._admission.config.look
        for live in tuple(self.waiting):
            able = [seat for seat in self._seats.values() if self._may_hold(seat, live)]
            if not (able and live.held):
                continue  # nothing that is up could ever take it, so it stands in nobody's way
            placed = self._place(live, able)
            while not placed and first is None and self._make_room(live, able):
                placed = self._place(live, able)
            if placed:
                if first is not None:
                    first.bypassed += 1
                continue
            first = first or live
            look -= 1
            if look < 0 or first.bypassed >= self._admission.config.bypass:
                return

    def _may_hold(self, seat: Seat, live: Live) -> bool:
        return seat.decodes and self._admission.fits_alone(seat, live)

    def _place(self, live: Live, able: list[Seat]) -> bool:
        """Find a place for a request. False: it waits on, for room or for a copy lane."""
        source = self._seats[live.instance]
        if source in able and self._admission.room(source) >= live.presumed - live.least:
            self._adopt(source, live)
            return True
        roomy = [seat for seat in able if seat is not source and self._has_room(seat, live)]
        self.blocked |= not roomy and live is self.waiting[0]
        free = [seat for seat in roomy if seat.arriving < self.config.pulls]
        if free:
            self._begin(live, source, min(free, key=lambda seat: self._load(seat, live)))
        return bool(free)

    def _has_room(self, seat: Seat, live: Live) -> bool:
        """For all that the request is presumed to need, and for what it has now."""
        unused = self._ledger.capacity(seat.instance) - self._ledger.used(seat.instance)
        rows = self._admission.config.max_rows
        return len(seat.lives) < rows and live.presumed <= self._admission.room(seat) and live.least <= unused

    def _make_room(self, live: Live, able: list[Seat]) -> bool:
        """Where instances began to decode while full of requests that wait, nothing would ever move: the
        youngest of those yields. False: something moves, so room will come."""
        there = [other for seat in able for other in seat.lives.values() if other is not live]
        if not there or any(other.flying or not other.held for other in there):
            return False
        victim = max(there, key=_rank)
        self.withdraw(victim)
        self._counts.preemptions += 1
        self._batcher.send_back(self._seats[victim.instance], victim)
        return True

    def _load(self, seat: Seat, live: Live) -> tuple[int, int, int]:
        """Fewest slots held, less those that need not be copied."""
        known = self._ledger.page * len(self._batcher.found(seat, live, live.planned))
        return (self._ledger.used(seat.instance) - known, seat.promised, seat.instance)

    def _adopt(self, seat: Seat, live: Live) -> None:
        """The instance that computed the prompt decodes now: the request stays, and nothing is moved."""
        self.withdraw(live)
        seat.promised += live.most - live.least
        live.passing = False
        self._batcher.decode(seat, live)

    # ---- between two instances -----------------------------------------------------------------

    def _begin(self, live: Live, source: Seat, target: Seat) -> None:
        self.withdraw(live)
        hashes = self._batcher.found(target, live, live.planned)
        self._ledger.open(target.instance, live.id, hashes)
        grown = self._ledger.grow(target.instance, live.id, live.planned)
        assert grown is not None, "room was promised that is not there"
        target.lives[live.id] = live
        target.promised += live.most
        target.taken(live.presumed)
        first = len(hashes) * self._ledger.page
        live.transfer = transfer = Transfer(live, source, target, first)
        if first == live.planned:
            self.land(transfer)
            return
        held = self._ledger.extents(source.instance, live.id, first // self._ledger.page)
        spans = Span(source.instance, first, held), Span(target.instance, first, grown)
        self._counts.moves += 1
        self._counts.moved_tokens += live.planned - first
        self._say(transfer, Move(self._number(), live.id, live.planned - first, *spans))

    def _say(self, transfer: Transfer, move: Move) -> None:
        live = transfer.live
        transfer.move = replace(move, after=(live.step,) if live.flying else ())
        transfer.target.arriving += 1
        self.flying[move.id] = transfer
        self.said.append(transfer.move)

    def answered(self, move: int) -> Transfer | None:
        """A move was answered; None if its target was lost before."""
        transfer = self.flying.pop(move, None)
        if transfer is not None:
            transfer.target.arriving -= 1
        return transfer

    def land(self, transfer: Transfer) -> None:
        """All KV is at the target: the request goes on there once its last step at the source is
        answered."""
        if transfer.live.flying:
            transfer.done = True
        else:
            self._arrive(transfer)

    def _arrive(self, transfer: Transfer) -> None:
        live, target = transfer.live, transfer.target
        live.transfer = None
        if transfer.source is not None:
            self._batcher.vacate(transfer.source, live)
        live.instance, live.passing, live.opened = target.instance, False, False
        self._batcher.decode(target, live)
        live.room = 0  # its first step here describes it
        if self._batcher.config.prefix_cache:
            self._batcher.publish(target, live, transfer.first)

    def retry(self, transfer: Transfer) -> bool:
        """A move failed: say it again with the same slots. False: it was tried often enough."""
        assert transfer.move is not None
        if transfer.tries >= self.config.retries or transfer.source is None:
            return False
        transfer.tries += 1
        self._counts.move_retries += 1
        self._say(transfer, replace(transfer.move, id=self._number()))
        return True

    def retreat(self, transfer: Transfer) -> None:
        """Give back the slots at the target; whatever the request has is at its source."""
        live, target = transfer.live, transfer.target
        live.transfer = None
        self._ledger.release(target.instance, live.id)
        del target.lives[live.id]
        target.promised -= live.most
        target.stir()

    def revoke(self, live: Live) -> None:
        """What is under way for this request is of no use: ask for its answer, which frees the slots."""
        self.withdraw(live)
        transfer = live.transfer
        if transfer is None:
            return
        if transfer.done:
            self.retreat(transfer)
        elif not transfer.void:
            assert transfer.move is not None
            transfer.void = True
            self.said.append(Cancel(transfer.move.id))

    def forsake(self, transfer: Transfer) -> None:
        """The target was lost: no answer will come."""
        if transfer.move is not None:
            self.flying.pop(transfer.move.id, None)


def _rank(live: Live) -> int:
    return live.order
