"""`Beset`: virtual hands that fail on purpose, at the stages of requests' lives. `JumpingClock`: a core's."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import StrEnum
from heapq import heapify, heappop, heappush
from itertools import product

from chaos.life import Life, Moment, Stage
from plait.sim.workers import VirtualWorkers
from plait.spec.cluster import Role, incomplete
from plait.spec.command import Command, Score
from plait.spec.event import (
    Aborted,
    Arrived,
    Event,
    Moved,
    MoveFailed,
    Reassign,
    StepDone,
    StepFailed,
    WorkerLost,
    WorkerUp,
)
from plait.spec.move import Cancel, Move
from plait.spec.step import Step
from plait.workload.journal import Core

MS = 1_000_000


class Fault(StrEnum):
    """What is done."""

    LOSE = "worker lost"
    FAIL_STEP = "step fails"
    FAIL_MOVE = "move fails"
    LATE_MOVE = "move comes late"
    ABORT = "caller leaves"
    ROLE = "role changes"
    JUMP = "clock jumps"


ANYWHERE = (Fault.LOSE, Fault.ABORT, Fault.JUMP, Fault.ROLE)
STEPS = (Stage.PREFILL, Stage.CHUNK, Stage.GROUP, Stage.RETENTION, Stage.DECODE)
FAULTS = (
    *product(Stage, ANYWHERE),
    *product(STEPS, (Fault.FAIL_STEP,)),
    *product((Stage.MOVING,), (Fault.FAIL_MOVE, Fault.LATE_MOVE)),
)
"""Where each can happen."""


class JumpingClock:
    """A core whose clock leaps; as in the driver, its time rises all the same."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.offset_ns = 0
        """What it is ahead of the world."""
        self._last_ns = -1

    def handle(self, event: Event, now_ns: int) -> Sequence[Command]:
        """See `Core`. Deadlines are set by the clock that jumps."""
        self._last_ns = max(now_ns + self.offset_ns, self._last_ns + 1)
        if isinstance(event, Arrived) and event.request.deadline_ns is not None:
            deadline_ns = event.request.deadline_ns + self.offset_ns
            event = Arrived(replace(event.request, deadline_ns=deadline_ns))
        return self._core.handle(event, self._last_ns)


class Beset:
    """`Hands`, and an observer. A fault waits for its stage, happens there, and the next one waits."""

    def __init__(
        self,
        hands: VirtualWorkers,
        clock: JumpingClock,
        roles: dict[int, Role],
        slots: int,
        rng: random.Random,
        pause_ns: int,
        settled: Callable[[], bool],
    ) -> None:
        """
        Args:
            roles: of all instances, which come up in epoch 0.
            slots: of each instance.
            pause_ns: mean time between two faults.
            settled: whether no instance is still to take another role. (If all that decode are to take up
                prompts, or come from there, what is computed would wait for a further change.)
        """
        self.done: Counter[str] = Counter()
        self._hands, self._clock, self._rng = hands, clock, rng
        self._settled = settled
        self._life = Life(any(not role.prefills for role in roles.values()))
        self._roles, self._slots, self._pause_ns = roles, slots, pause_ns
        self._epochs = dict.fromkeys(roles, 0)
        self._down: set[int] = set()
        self._swapped = False
        """One instance has another role for a while."""
        self._wishes = list(FAULTS)
        rng.shuffle(self._wishes)
        self._now_ns = self._next_ns = 0
        self._due: list[tuple[int, int, Event | Cancel]] = []
        """(time, number, what comes then): a heap."""
        self._numbers = 0
        self._doomed: set[int] = set()
        """Steps that will fail."""
        self._late: set[int] = set()
        """Moves whose answer will come late."""
        self._moves: dict[int, Move] = {}
        """Those without an answer."""

    # ---- what is done --------------------------------------------------------------------------

    def see(self, now_ns: int, event: Event, commands: Sequence[Command]) -> None:
        """See `Observer`."""
        self._now_ns = now_ns
        moments = self._life.moments(event, commands)
        if now_ns < self._next_ns:
            return
        for moment in self._rng.sample(moments, len(moments)):
            for at, (stage, fault) in enumerate(self._wishes):
                if stage is moment.stage and self._harm(fault, moment, now_ns):
                    self._wishes.append(self._wishes.pop(at))
                    self.done[f"{stage}: {fault}"] += 1
                    self._next_ns = now_ns + int(self._rng.expovariate(1 / self._pause_ns))
                    return

    def _harm(self, fault: Fault, moment: Moment, now_ns: int) -> bool:
        """Whether it could be done."""
        rng = self._rng
        instance = rng.choice(moment.instances or tuple(self._roles))
        if fault is Fault.LOSE:
            return self._lose(instance, now_ns)
        if fault is Fault.ROLE:
            return self._turn(instance, now_ns)
        if fault is Fault.ABORT:
            self._plan(now_ns, Aborted(moment.request))
        elif fault is Fault.JUMP:
            self._clock.offset_ns += rng.randint(-1000, 1000) * MS
        elif fault is Fault.FAIL_STEP:
            self._doomed.add(moment.work)
        elif fault is Fault.FAIL_MOVE:
            self._plan(now_ns + rng.randrange(20 * MS), Cancel(moment.work))
        elif fault is Fault.LATE_MOVE:
            self._late.add(moment.work)
        return True

    def _lose(self, instance: int, now_ns: int) -> bool:
        if instance in self._down:
            return False
        self._down.add(instance)
        self._plan(now_ns, WorkerLost(instance, self._epochs[instance]))
        self._epochs[instance] += 1
        again = WorkerUp(instance, self._epochs[instance], self._slots)
        self._plan(now_ns + self._rng.randint(1, 1000) * MS, again)
        return True

    def _turn(self, instance: int, now_ns: int) -> bool:
        """Another role of the same kind for a while."""
        before = self._roles[instance]
        others = [role for role in Role if role.elastic is before.elastic and role is not before]
        after = self._rng.choice(others)
        if self._swapped or not self._settled() or incomplete((self._roles | {instance: after}).values()):
            return False
        self._swapped = True
        self._plan(now_ns, Reassign(instance, after))
        self._plan(now_ns + self._rng.randint(1, 500) * MS, Reassign(instance, before))
        return True

    def _plan(self, at_ns: int, what: Event | Cancel) -> None:
        heappush(self._due, (at_ns, self._numbers, what))
        self._numbers += 1

    # ---- what hands do -------------------------------------------------------------------------

    def step_end_ns(self, step: Step, now_ns: int) -> int:
        """See `Hands`."""
        return self._hands.step_end_ns(step, now_ns)

    def wake_ns(self, at_ns: int, now_ns: int) -> int:
        """See `Hands`. An alarm was set by a clock that may have jumped since."""
        return max(at_ns - self._clock.offset_ns, now_ns)

    def score_end_ns(self, score: Score, now_ns: int) -> int:
        """See `Hands`."""
        return self._hands.score_end_ns(score, now_ns)

    def answer(self, work: Step | Score) -> Event | None:
        """See `Hands`. With a step that fails, the moves that follow it do."""
        event = self._hands.answer(work)
        if not isinstance(event, StepDone) or event.step not in self._doomed:
            return event
        self._doomed.remove(event.step)
        for move in self._moves.values():
            if event.step in move.after:
                self._hands.cancel(move.id, self._now_ns)
        return StepFailed(event.step, "made to fail")

    def move(self, move: Move, now_ns: int) -> None:
        """See `Hands`."""
        self._moves[move.id] = move
        self._hands.move(move, now_ns)

    def cancel(self, move: int, now_ns: int) -> None:
        """See `Hands`."""
        self._hands.cancel(move, now_ns)

    def next_moved_ns(self) -> int | None:
        """See `Hands`: a fault, or what happens to a move."""
        dues = (self._hands.next_moved_ns(), self._due[0][0] if self._due else None)
        return min((due_ns for due_ns in dues if due_ns is not None), default=None)

    def moved(self, now_ns: int) -> Event | None:
        """See `Hands`."""
        if self._due and self._due[0][0] <= now_ns:
            return self._happens(heappop(self._due)[2], now_ns)
        event = self._hands.moved(now_ns)
        if isinstance(event, Moved) and event.move in self._late:
            self._late.remove(event.move)
            self._plan(now_ns + self._rng.randint(1, 500) * MS, event)
            return None
        return self._answered(event)

    def _happens(self, what: Event | Cancel, now_ns: int) -> Event | None:
        if isinstance(what, Cancel):
            self._hands.cancel(what.move, now_ns)
            return None
        if isinstance(what, WorkerUp):
            self._down.discard(what.instance)
        if isinstance(what, Reassign) and what.role is self._roles[what.instance]:
            self._swapped = False
        return self._answered(what)

    def _answered(self, event: Event | None) -> Event | None:
        if isinstance(event, Moved | MoveFailed):
            self._moves.pop(event.move, None)
        return event

    def lost(self, instance: int, now_ns: int) -> None:
        """See `Hands`. Answers that were to come late from there will not come."""
        self._moves = {id: move for id, move in self._moves.items() if move.target.instance != instance}
        self._due = [due for due in self._due if not isinstance(due[2], Moved) or due[2].move in self._moves]
        heapify(self._due)
        self._hands.lost(instance, now_ns)
