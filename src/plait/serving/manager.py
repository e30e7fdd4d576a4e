"""`GlobalManager`: the serving core. `handle(event, now)` is the only door.

It composes KvLedger (slots), Admission (queue, memory test, deadlines), Router (which instance)
and Batcher (the next step), and keeps one promise: every request that arrived ends exactly once.

    Arrived -> [queue] -> seat: prefilling -> decoding -> End
                  ^------- leaving <----------'   preempted, or lost with a step or a worker
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from plait.serving.admission import Admission, AdmissionConfig
from plait.serving.batcher import Batcher, BatcherConfig
from plait.serving.ledger import KvLedger
from plait.serving.live import Counts, Flight, Live, Seat
from plait.serving.router import Router
from plait.spec.command import Command, End, Token, Wake
from plait.spec.event import (
    Aborted,
    Arrived,
    Drain,
    Event,
    StepDone,
    StepFailed,
    Stopped,
    Woken,
    WorkerLost,
    WorkerUp,
)
from plait.spec.request import EndReason
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


class GlobalManager:
    """Decides for one cell. Holds no token, no tensor, no clock."""

    def __init__(self, config: ManagerConfig) -> None:
        self.config = config
        self.ledger = KvLedger(config.page)
        self.admission = Admission(config.admission, self.ledger, config.batcher.depth - 1)
        self.router = Router(self.ledger)
        self.counts = Counts()
        self.batcher = Batcher(config.batcher, self.ledger, self.counts, config.model)
        self.seats: dict[int, Seat] = {}
        self.lives: dict[int, Live] = {}
        """Requests that have not ended."""
        self.draining = False
        self._flights: dict[int, Flight] = {}
        self._steps = 0
        self._arrivals = 0
        self._wake_ns: int | None = None
        self._out: list[Command] = []
        self._handlers: dict[type, Callable[[Any], None]] = {
            Arrived: self._arrived,
            Aborted: self._aborted,
            Stopped: self._stopped,
            StepDone: self._step_done,
            StepFailed: self._step_failed,
            Woken: self._woken,
            WorkerUp: self._worker_up,
            WorkerLost: self._worker_lost,
            Drain: self._drain,
        }

    def handle(self, event: Event, now: int) -> list[Command]:
        """Take in one fact and say what is to be done. `now` in ns, later than at any call before."""
        self._out = []
        self._handlers[type(event)](event)
        self._requeue()
        self._expire(now)
        self._seat_waiting()
        self._plan()
        self._watch()
        return self._out

    # ---- what happened -------------------------------------------------------------------------

    def _arrived(self, event: Arrived) -> None:
        live = Live(event.request, self._arrivals)
        assert live.id not in self.lives, f"request {live.id} arrived twice"
        self._arrivals += 1
        self.lives[live.id] = live
        if self.draining:
            self._end(live, EndReason.DRAINING)
        elif self.ledger.most and self.ledger.whole(live.longest) > self.ledger.most:
            self._end(live, EndReason.TOO_LONG)
        elif self.admission.full:
            self._end(live, EndReason.QUEUE_FULL)
        else:
            self.admission.watch(live)
            self.admission.push(live)

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
                self._settle(flight.seat, live)
                continue
            if drawn:
                live.drawn += drawn
                given.append(live.id)
                if live.drawn >= live.max_tokens or live.id in stopped:
                    ended.append(live)
                    continue
            if live.leaving:
                self._settle(flight.seat, live)
        if given:
            self._out.append(Token(event.step, tuple(given)))
        for live in ended:
            self._end(live, EndReason.STOP if live.id in stopped else EndReason.LENGTH)

    def _step_failed(self, event: StepFailed) -> None:
        flight = self._land(event.step)
        if flight is None:
            return
        seat = flight.seat
        for live in flight.lives:
            live.flying -= 1
            live.attempts += not live.leaving  # steps in flight that fail together are one loss
        # Rows that share a prefix with a failed one hold KV that was never computed, and steps
        # already in flight may read it.
        self.ledger.forget(seat.instance)
        for other in self._flights.values():
            other.void |= other.seat is seat
        for live in tuple(seat.lives.values()):
            self._lose(seat, live)

    def _woken(self, event: Woken) -> None:
        self._wake_ns = None

    def _worker_up(self, event: WorkerUp) -> None:
        if event.instance in self.seats:
            self._worker_lost(WorkerLost(event.instance, self.seats[event.instance].epoch))
        self.seats[event.instance] = Seat(event.instance, event.epoch)
        self.seats = dict(sorted(self.seats.items()))
        self.ledger.add(event.instance, event.slots)
        for live in tuple(self.admission):
            if live.most > self.ledger.most:
                self._end(live, EndReason.TOO_LONG)

    def _worker_lost(self, event: WorkerLost) -> None:
        seat = self.seats.get(event.instance)
        if seat is None or seat.epoch != event.epoch:
            return
        self._flights = {step: flight for step, flight in self._flights.items() if flight.seat is not seat}
        for live in tuple(seat.lives.values()):
            live.flying = 0
            live.attempts += not live.leaving
            self._lose(seat, live)
        del self.seats[event.instance]
        self.ledger.remove(event.instance)

    def _drain(self, event: Drain) -> None:
        self.draining = True

    # ---- what follows --------------------------------------------------------------------------

    def _land(self, step: int) -> Flight | None:
        """A step was answered; None if it was lost with its worker before."""
        flight = self._flights.pop(step, None)
        if flight is not None:
            flight.seat.flights -= 1
        return flight

    def _lose(self, seat: Seat, live: Live) -> None:
        """What a request has on an instance is of no use any more."""
        if live.over or live.leaving:
            self._settle(seat, live)
        elif live.attempts > self.config.retries:
            self._end(live, EndReason.FAILED)
        else:
            self.counts.recomputations += 1
            self.batcher.send_back(seat, live)

    def _settle(self, seat: Seat, live: Live) -> None:
        """Free a request that ended or yielded, once none of its steps is in flight."""
        if live.flying:
            return
        if live.leaving and not live.over:
            self.batcher.yielded.append(live)
        self.batcher.unseat(seat, live)

    def _end(self, live: Live, reason: EndReason) -> None:
        del self.lives[live.id]
        self._out.append(End(live.id, reason, live.drawn))
        if live.instance >= 0:
            seat = self.seats[live.instance]
            live.over = True
            self.batcher.idle(seat, live)
            self._settle(seat, live)
        elif reason not in (EndReason.QUEUE_FULL, EndReason.DRAINING) and live in self.admission:
            self.admission.drop(live)

    def _expire(self, now: int) -> None:
        for request in self.admission.passed(now):
            if live := self.lives.get(request):
                self._end(live, EndReason.DEADLINE)

    def _plan(self) -> None:
        """Give every instance its next steps, in the order of their ids."""
        depth = self.config.batcher.depth
        for seat in self.seats.values():
            while seat.flights < depth and (seat.prefilling or seat.decoding):
                built = self.batcher.build(seat, self._steps)
                if built is None:
                    break
                self._issue(*built)
        self._requeue()

    def _issue(self, step: Step, flight: Flight) -> None:
        self._steps += 1
        self._flights[step.id] = flight
        flight.seat.flights += 1
        self._out.append(step)

    def _requeue(self) -> None:
        for live in self.batcher.yielded:
            self.admission.put_back(live)
        self.batcher.yielded.clear()

    def _seat_waiting(self) -> None:
        """Requests go to instances until none fits."""
        while head := self.admission.head():
            seats = self._ready()
            for seat in self.router.order(seats, head) if len(seats) > 1 else seats:
                if live := self.admission.take(seat):
                    self.batcher.seat(seat, live)
                    break
            else:
                return

    def _ready(self) -> list[Seat]:
        """Instances worth trying. One whose prompts would keep a newcomer waiting for more than a
        step is not: in the common queue it may still go where there is room first."""
        limit, hopeless = self.config.batcher.step_tokens, self.admission.hopeless
        return [
            seat
            for seat in self.seats.values()
            if not hopeless(seat) and not (seat.prefilling and seat.backlog >= limit)
        ]

    def _watch(self) -> None:
        """One Wake is pending: the earliest deadline's."""
        deadline = self.admission.next_deadline_ns
        if deadline is not None and (self._wake_ns is None or deadline < self._wake_ns):
            self._wake_ns = deadline
            self._out.append(Wake(deadline))

    # ---- for tests and metrics -----------------------------------------------------------------

    def check(self) -> None:
        """The manager's own invariants. Raises AssertionError."""
        self.ledger.check()
        waiting = {live.id for live in self.admission}
        seated = {live.id for seat in self.seats.values() for live in seat.lives.values() if not live.over}
        assert not waiting & seated, "a request waits and runs"
        assert waiting | seated == set(self.lives), "a request is nowhere"
        for seat in self.seats.values():
            for live in seat.lives.values():
                held = self.ledger.held(seat.instance, live.id)
                assert live.planned <= held or not live.opened, "computed positions without slots"
                assert live.planned <= live.longest, "a position beyond the last"
                assert not (live.over or live.leaving) or live.flying, "nothing pins these slots"
            assert seat.promised == sum(self.ledger.whole(v.longest) for v in seat.lives.values())

    @property
    def quiet(self) -> bool:
        """No request is left, no step is in flight and no slot is held."""
        held = any(self.ledger.used(instance) for instance in self.seats)
        return not (self.lives or self._flights or held)
