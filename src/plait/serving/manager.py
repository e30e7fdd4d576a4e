"""`GlobalManager`: the serving core. `handle(event, now)` is the only door.

It composes KvLedger (slots), Roster (instances and their roles), Admission (queue, memory test, deadlines),
Router (which instance), Batcher (the next step), Handover (requests between two instances), Elasticity with
Ensemble (groups of instances), Relocations (KV between these), Crossings (answers to moves) and Flights (what
is not answered), and keeps one promise: every request that arrived ends exactly once.

    Arrived -> [queue] -> seat: prefilling -> decoding -> End
                  ^              |      '-> handed over -> decoding elsewhere -> End
                  '-- leaving <--+----------------'
                      preempted, or lost with a step or a worker
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from plait.serving.admission import Admission, AdmissionConfig
from plait.serving.batcher import Batcher, BatcherConfig
from plait.serving.compaction import Compaction
from plait.serving.crossings import Crossings
from plait.serving.elasticity import ElasticConfig, Elasticity
from plait.serving.ensemble import Ensemble
from plait.serving.flights import Flights
from plait.serving.handover import Handover, HandoverConfig
from plait.serving.ledger import KvLedger
from plait.serving.live import Counts, Flight, Live, Seat
from plait.serving.pools import Pools
from plait.serving.recall import Recall
from plait.serving.relocations import Relocations
from plait.serving.roster import Roster
from plait.serving.router import Router
from plait.spec.cluster import Placement, Role
from plait.spec.command import Command, End, Token, Wake
from plait.spec.errors import UserError
from plait.spec.event import (
    Aborted,
    Arrived,
    Drain,
    Event,
    Moved,
    MoveFailed,
    Reassign,
    StepDone,
    StepFailed,
    Stopped,
    Woken,
    WorkerLost,
    WorkerUp,
)
from plait.spec.request import REFUSALS, EndReason
from plait.spec.step import Step


@dataclass(frozen=True, slots=True)
class ManagerConfig:
    """Everything a GlobalManager needs to decide."""

    model: str = ""
    """Name of the model, repeated in every step."""
    page: int = 16
    """KV slots that are owned together, in tokens; also the size of a hashed prompt block."""
    retries: int = 2
    """Times that a request is recomputed after it was lost with a worker or a failed step."""
    admission: AdmissionConfig = field(default_factory=AdmissionConfig)
    batcher: BatcherConfig = field(default_factory=BatcherConfig)
    handover: HandoverConfig = field(default_factory=HandoverConfig)
    elastic: ElasticConfig = field(default_factory=ElasticConfig)
    placement: Placement = field(default_factory=Placement)
    """Roles and plans of instances; those that it does not name are MIXED."""

    def __post_init__(self) -> None:
        roles = {each.role for each in self.placement.instances}
        if self.handover.overlap and Role.ELASTIC_PREFILL in roles:
            raise UserError("elastic instances hand over what is computed: leave out --overlap", "overlap")


class GlobalManager:
    """Decides for one cell. Holds no token, no tensor, no clock."""

    def __init__(self, config: ManagerConfig) -> None:
        self.config = config
        self.ledger = KvLedger(config.page)
        ahead = (config.batcher.depth - 1) * config.batcher.repeat
        self.admission = Admission(config.admission, self.ledger, ahead)
        self.roster = Roster(config.placement, self.ledger)
        self.seats = self.roster.seats
        self.counts = Counts()
        self.flights = Flights(config.admission.ttft_ns)
        self.batcher = Batcher(config.batcher, self.ledger, self.counts, config.model)
        parts = (self.roster, self.ledger, self.admission, self.batcher, self.counts)
        self.handover = Handover(config.handover, *parts, self.flights.number)
        self.router = Router(self.ledger, self.admission, self.batcher, self.handover)
        self.ensemble = Ensemble(self.roster, self.ledger, self.counts, config.model, self.batcher.yielded)
        depth, handover = config.batcher.depth, config.handover
        common = self.ensemble, self.ledger, self.admission
        pools = Pools(*common, depth, handover.held_share)
        self.elasticity = Elasticity(config.elastic, *common, pools, depth)
        masters, number = self.elasticity.masters, self.flights.number
        self.relocations = Relocations(handover, *common, pools, masters, self.counts, number)
        if times := config.elastic.move_token_ns:
            moves = self.ensemble, self.ledger, self.relocations
            self.elasticity.compaction = Compaction(times, config.elastic.tpot_ns, *moves)
        self.crossings = Crossings(self.handover, self.relocations, self.ensemble, self._settle, self._lose)
        if config.batcher.prefix_cache:
            self.elasticity.recall = Recall(*common, self.counts)
        self.lives: dict[int, Live] = {}
        """Requests that have not ended."""
        self.draining = False
        self._now_ns = 0
        self._wake_ns: int | None = None
        self._out: list[Command] = []
        self._handlers: dict[type, Callable[[Any], None]] = {
            Arrived: self._arrived,
            Aborted: self._aborted,
            Stopped: self._stopped,
            StepDone: self._step_done,
            StepFailed: self._step_failed,
            Moved: lambda event: self.crossings.answered(event.move, arrived=True),
            MoveFailed: lambda event: self.crossings.answered(event.move, arrived=False),
            Woken: self._woken,
            WorkerUp: self._worker_up,
            WorkerLost: self._worker_lost,
            Reassign: self._reassign,
            Drain: self._drain,
        }

    def handle(self, event: Event, now: int) -> list[Command]:
        """Take in one fact and say what is to be done. `now` in ns, later than at any call before."""
        self._out, self._now_ns = [], now
        self._handlers[type(event)](event)
        self._requeue()
        self._expire()
        self.roster.turn(self.relocations.waiting)
        self._pull()
        self._seat_waiting()
        # Who yielded made room for others, or a row that was to leave stays; and no answer will come.
        if (self._plan() or self.ensemble.decoding) and not self.flights:
            self.roster.turn(self.relocations.waiting)
            self._pull()
            self._seat_waiting()
            self._plan()
        self._watch()
        return self._out

    # ---- what happened -------------------------------------------------------------------------

    def _arrived(self, event: Arrived) -> None:
        request = event.request
        live = Live(request, self.admission.order(request.priority, self._now_ns))
        assert live.id not in self.lives, f"request {live.id} arrived twice"
        self.lives[live.id] = live
        if self.draining:
            self._end(live, EndReason.DRAINING)
        elif self.roster.limit and self.ledger.whole(live.longest) > self.roster.limit:
            self._end(live, EndReason.TOO_LONG)
        elif self.admission.full:
            self._end(live, EndReason.QUEUE_FULL)
        elif self.flights.late(live.known, self.admission.before(live.order), self.seats.values()):
            self._end(live, EndReason.LATE)
        else:
            self.admission.watch(live)
            self.admission.push(live)
            self.elasticity.expect(live, self._now_ns)

    def _aborted(self, event: Aborted) -> None:
        if live := self.lives.get(event.request):
            self._end(live, EndReason.ABORTED)

    def _stopped(self, event: Stopped) -> None:
        if live := self.lives.get(event.request):
            live.drawn = min(live.drawn, event.count)
            self._end(live, EndReason.STOP)

    def _step_done(self, event: StepDone) -> None:
        flight = self._land(event.step)
        if flight is None:
            return
        counts = (0,) * len(flight.lives) if flight.void else event.tokens
        stopped = {flight.lives[index].id for index in event.stopped}
        given: list[int] = []
        ended: list[Live] = []
        for live, drawn in zip(flight.lives, counts, strict=True):
            live.flying -= 1
            if live.over:
                self._settle(flight.seats[0], live)
                continue
            if drawn:
                live.drawn += drawn
                given.append(live.id)
                if live.drawn >= live.max_tokens or live.id in stopped:
                    ended.append(live)
                    continue
            if live.leaving:
                self._settle(flight.seats[0], live)
            elif flight.prompts and live.master < 0:
                self.elasticity.computed(live, bool(drawn), self._now_ns)
                if drawn and live.master < 0:
                    self.relocations.offer(live)
            elif live.passing and drawn and not live.flying:
                self.handover.offer(live)
        if given:
            self._out.append(Token(event.step, tuple(given)))
        for live in ended:
            self._end(live, EndReason.STOP if live.id in stopped else EndReason.LENGTH)

    def _step_failed(self, event: StepFailed) -> None:
        flight = self._land(event.step)
        if flight is None:
            return
        for live in flight.lives:
            live.flying -= 1
            live.attempts += not live.leaving  # steps in flight that fail together are one loss
        # Rows that share a prefix with a failed one hold KV that was never computed, and steps
        # already in flight may read it.
        for seat in flight.seats:
            self.ledger.forget(seat.instance)
        for live in self.flights.doubt(flight).values():
            transfer = live.transfer
            if transfer is not None and transfer.target in flight.seats:
                if transfer.first:
                    self.crossings.turn_back(transfer)
            elif live.leaving or not (live.answered or self.relocations.holds(live)):
                self._lose(self.seats.get(live.instance), live)

    def _woken(self, event: Woken) -> None:
        self._wake_ns = None

    def _worker_up(self, event: WorkerUp) -> None:
        if event.instance in self.seats:
            self._worker_lost(WorkerLost(event.instance, self.seats[event.instance].epoch))
        self.roster.join(event.instance, event.epoch, event.slots)
        for live in tuple(self.admission):
            if self.roster.limit and live.most > self.roster.limit:
                self._end(live, EndReason.FAILED if live.drawn else EndReason.TOO_LONG)

    def _worker_lost(self, event: WorkerLost) -> None:
        seat = self.seats.get(event.instance)
        if seat is None or seat.epoch != event.epoch:
            return
        seat.retiring = True  # who is seen to now must not go there
        self.ensemble.lost(event.instance)
        for flight in self.flights.lost(seat):
            self._break_off(flight, seat)
        for live in tuple(seat.lives.values()):
            if self.crossings.survives(live, seat):
                continue
            whole, transfer = live.answered, live.transfer
            if transfer is not None:
                transfer.source, live.instance = None, -1
                if whole and not transfer.void:
                    continue  # the target may have had everything
            live.attempts += not live.leaving
            self._lose(None if transfer or live.parts is not None else seat, live)
        self.roster.leave(seat)

    def _reassign(self, event: Reassign) -> None:
        seat = self.roster.reassign(event.instance, event.role)
        if seat is not None:
            for live in tuple(seat.prefilling.values()):
                # Where nothing is computed, nothing is lost.
                if not live.opened or event.role is Role.LENT:
                    self.batcher.send_back(seat, live)
            if event.role is Role.LENT:
                for live in tuple(seat.decoding.values()):
                    self.handover.send_off(seat, live)
        elif event.instance in self.seats:
            self.handover.stay(self.seats[event.instance])

    def _drain(self, event: Drain) -> None:
        self.draining = True

    # ---- what follows --------------------------------------------------------------------------

    def _land(self, step: int) -> Flight | None:
        flight = self.flights.land(step, self._now_ns)
        if flight is not None and flight.prompts:
            self.ensemble.landed(flight)
        return flight

    def _break_off(self, flight: Flight, lost: Seat) -> None:
        """An instance of its group is gone: it will not be answered, and nobody of it draws."""
        if flight.prompts:
            self.ensemble.landed(flight)
        for live in flight.lives:
            live.flying -= 1
        left = [live for live in flight.lives if live.id not in lost.lives]
        for live in (*left, *self.flights.behind(left)):
            live.attempts += not live.leaving
            self._lose(None, live)

    def _lose(self, seat: Seat | None, live: Live) -> None:
        """What a request has on an instance (None: one that is gone) is of no use any more."""
        if live.over or live.leaving:
            self._settle(seat, live)
        elif live.attempts > self.config.retries:
            self._end(live, EndReason.FAILED)
        else:
            self.counts.recomputations += 1
            self.handover.revoke(live)
            if live.parts is not None:
                self.relocations.revoke(live)
                self.ensemble.send_back(live)
            elif seat is not None:
                self.batcher.send_back(seat, live)
            else:
                live.leaving = True
                self._settle(None, live)

    def _settle(self, seat: Seat | None, live: Live) -> None:
        """Free a request that ended or yielded, once no step and no move of it is in flight."""
        if live.pinned:
            return
        if live.leaving and not live.over:
            self.batcher.yielded.append(live)
        live.leaving = False
        if live.parts is not None:
            self.ensemble.unseat(live)
        elif seat is not None:
            self.batcher.unseat(seat, live)

    def _end(self, live: Live, reason: EndReason) -> None:
        del self.lives[live.id]
        self._out.append(End(live.id, reason, live.drawn))
        self.handover.revoke(live)
        if live.parts is not None:
            live.over = True
            self.relocations.revoke(live)
            self.ensemble.rest(live)
            self._settle(None, live)
        elif live.instance >= 0:
            seat = self.seats[live.instance]
            live.over = True
            self.batcher.idle(seat, live)
            self._settle(seat, live)
        elif live.transfer is not None:
            live.over = True
        elif (reason is EndReason.TOO_LONG or reason not in REFUSALS) and live in self.admission:
            self.admission.drop(live)

    def _expire(self) -> None:
        for request in self.admission.passed(self._now_ns):
            if live := self.lives.get(request):
                self._end(live, EndReason.DEADLINE)

    def _plan(self) -> bool:
        """Give every instance its next steps, in the order of their ids. Whether requests yielded."""
        depth = self.config.batcher.depth
        for seat in self.seats.values():
            while seat.flights < depth and (seat.prefilling or seat.decoding):
                built = self.batcher.build(seat, self.flights.next_id)
                if built is None:
                    break
                self._issue(*built)
        for made in self.elasticity.plan(self.flights, self._now_ns):
            self._issue(*made)
        yielded = self._requeue()
        if self.config.handover.overlap or self.relocations.resting:
            self._pull()
        return yielded

    def _issue(self, step: Step, flight: Flight) -> None:
        self.flights.issue(step, flight, self._now_ns)
        self._out.append(step)
        for live in self.batcher.computed:
            live.step = step.id
            if self.config.handover.overlap:
                self.handover.offer(live)
        self.batcher.computed.clear()

    def _pull(self) -> None:
        """Those that wait between two instances go to where there is room."""
        self.handover.pull()
        self.relocations.pull()
        for said in (self.handover.said, self.relocations.said):
            self._out += said
            said.clear()
        self._requeue()

    def _requeue(self) -> bool:
        yielded, self.batcher.yielded[:] = list(self.batcher.yielded), ()
        for live in yielded:
            self.admission.put_back(live)
        return bool(yielded)

    def _seat_waiting(self) -> None:
        """Requests go to instances until none fits."""
        while head := self.admission.head():
            for seat in self.router.order(self.seats.values(), head):
                if live := self.admission.take(seat):
                    self.batcher.seat(seat, live)
                    break
            else:
                return

    def _watch(self) -> None:
        """One Wake is pending: the earliest deadline's."""
        deadline = self.admission.next_deadline_ns
        if deadline is not None and (self._wake_ns is None or deadline < self._wake_ns):
            self._wake_ns = deadline
            self._out.append(Wake(deadline))

    @property
    def quiet(self) -> bool:
        """No request is left, no step or move is in flight and no slot is held."""
        moving = self.handover.flying or self.relocations.flying
        held = any(self.ledger.used(instance) for instance in self.seats)
        return not (self.lives or self.flights or moving or held)
