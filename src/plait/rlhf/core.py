"""`RlhfCore`: one iteration of RLHF as events. It owns a GlobalManager, and lends and takes back instances.

    Rollout, Arrived ... -> samples are drawn on all instances
    so few unfinished    -> those on most instances move together; these are lent   (inter-stage fusion)
    batches are finished -> Score on an instance that is lent and has nothing left -> Scored
    nothing left here    -> an instance that went on drawing is lent too
    all are scored       -> instances are taken back

What is scored together follows from the samples' numbers, never from when they end; so what is trained on
does not depend on the fusion. The scheme is that of RLHFuse (arXiv 2409.13221, section 4); instances that run
dry in the tail are lent one by one besides.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from plait.serving.manager import GlobalManager
from plait.spec.cluster import Role
from plait.spec.command import Command, End, Score
from plait.spec.errors import UserError
from plait.spec.event import Arrived, Event, Reassign, Rollout, Scored, StepDone, WorkerLost

PIECES = 2
"""An instance is given one part in so many of what it would get if all instances shared what is ready."""


@dataclass(frozen=True, slots=True)
class Tail:
    """When samples move together, and how many instances go on drawing."""

    left: int = 0
    """Samples that are not finished (R_t). 0: scoring waits for the last one."""
    kept: int = 1
    """Instances (m)."""


SERIAL = Tail()
"""Stages one after the other."""


@dataclass(frozen=True, slots=True)
class InterStageConfig:
    """When generation and scoring overlap."""

    tail_share: float = 0.0
    """Share of an iteration's samples; when so many are left, they go on together on few instances while the
    others score (R_t over the batch). 0: scoring waits for the last sample."""
    kept: int = 1
    """Instances that go on drawing (m)."""
    tune: bool = False
    """Choose both anew for each iteration, from the lengths and times of those before; the first iteration
    takes what is said here."""

    def __post_init__(self) -> None:
        if not 0 <= self.tail_share <= 1:
            raise UserError(f"tail_share must be between 0 and 1, not {self.tail_share}", "tail_share")
        if self.kept < 1:
            raise UserError(f"kept must be at least 1, not {self.kept}", "kept")

    def tail(self, samples: int) -> Tail:
        """Of an iteration with so many samples."""
        return Tail(ceil(samples * self.tail_share), self.kept)


class RlhfCore:
    """See the module. Without a `Rollout` it is the manager that it owns."""

    def __init__(self, manager: GlobalManager) -> None:
        self.manager = manager
        self.lent: dict[int, Role] = {}
        """Instances that work for others, with the role that they had."""
        self.reading: dict[int, Score] = {}
        """Instance -> what it scores."""
        self._plan = Rollout((), 1)
        self._sample: dict[int, int] = {}
        """Request -> sample, of those that are not finished."""
        self._tokens: list[int] = []
        """Of each sample that is finished, with its prompt; of the others those of the prompt."""
        self._left: list[int] = []
        """Samples of each batch that are not finished."""
        self._ready: dict[int, tuple[int, ...]] = {}
        """Batch that is finished -> those who are to read it and were not asked."""
        self._unscored = 0
        """Readings of batches that are not over."""
        self._expected = 0
        """Samples that have not arrived."""
        self._tail = False
        """The samples that are left have been moved together."""
        self._fresh: dict[int, None] = {}
        """Instances that are lent and have scored nothing yet."""

    def handle(self, event: Event, now: int) -> list[Command]:
        """Take in one fact and say what is to be done; see `GlobalManager.handle`."""
        if isinstance(event, StepDone):
            return self._step_done(event, now)
        commands: list[Command] = []
        if isinstance(event, Rollout):
            self._begin(event)
        elif isinstance(event, Scored):
            self._take_scored(event)
        else:
            if isinstance(event, Arrived) and event.request.id in self._sample:
                self._tokens[self._sample[event.request.id]] = event.request.prompt_tokens
                self._expected -= 1
            elif isinstance(event, WorkerLost):
                self._lose(event.instance)
            commands = self.manager.handle(event, now)
            self._take_ends(commands)
        if self._unscored or self.lent:
            commands += self._go_on(now)
        return commands

    def _step_done(self, event: StepDone, now: int) -> list[Command]:
        """Most events are these, and most change nothing here: nobody ended, and no instance ran dry."""
        left, seats = len(self._sample), self.manager.flights.seats(event.step)
        commands = self.manager.handle(event, now)
        self._take_ends(commands)
        changed = len(self._sample) < left or not all(seat.lives for seat in seats)
        if changed and self._unscored:
            commands += self._go_on(now)
        return commands

    # ---- what happened -------------------------------------------------------------------------

    def _begin(self, event: Rollout) -> None:
        assert not self._unscored, "the last iteration is not over"
        self._plan, count = event, len(event.requests)
        self._sample = {request: sample for sample, request in enumerate(event.requests)}
        self._tokens = [0] * count
        self._left = [min(event.batch, count - first) for first in range(0, count, event.batch)]
        self._unscored, self._expected = len(self._left) * event.readers, count
        self._tail = False

    def _take_ends(self, commands: Sequence[Command]) -> None:
        for command in commands:
            if isinstance(command, End) and command.request in self._sample:
                sample = self._sample.pop(command.request)
                self._tokens[sample] += command.tokens
                batch = sample // self._plan.batch
                self._left[batch] -= 1
                if not self._left[batch]:
                    self._ready[batch] = tuple(range(self._plan.readers))

    def _of(self, batch: int) -> list[int]:
        """Tokens of the samples of a batch."""
        size = self._plan.batch
        return self._tokens[batch * size : (batch + 1) * size]

    def _take_scored(self, event: Scored) -> None:
        for instance, score in self.reading.items():
            if score.id == event.score:
                del self.reading[instance]
                self._unscored -= len(score.batches) * len(score.readers)
                return

    def _lose(self, instance: int) -> None:
        """What it scored is to be scored anew; an answer that still comes is not waited for."""
        score = self.reading.pop(instance, None)
        if score is not None:
            for batch in score.batches:
                self._ready[batch] = tuple(sorted((*self._ready.get(batch, ()), *score.readers)))
        if instance in self.lent:
            self._fresh[instance] = None

    # ---- what follows --------------------------------------------------------------------------

    def _go_on(self, now: int) -> list[Command]:
        if not self._unscored:
            return self._take_back(now)
        commands: list[Command] = []
        if not (self._tail or self._expected) and 0 < len(self._sample) <= self._plan.left:
            self._tail = True
            commands += self._gather(now)
        if self._tail or not self._sample:
            for instance in self._idle():
                commands += self._lend(instance, now)
        if self._sample and all(instance in self.lent for instance in self.manager.seats):
            commands += self._recall(now)
        return commands + self._scores()

    def _recall(self, now: int) -> list[Command]:
        """Those that went on drawing are gone: one that is lent draws again."""
        up = [instance for instance in self.lent if instance in self.manager.seats]
        if not up:
            return []
        instance = min(up, key=lambda each: (each in self.reading, each))
        self._fresh.pop(instance, None)
        commands = self.manager.handle(Reassign(instance, self.lent.pop(instance)), now)
        self._take_ends(commands)
        return commands

    def _take_back(self, now: int) -> list[Command]:
        commands: list[Command] = []
        for instance, role in self.lent.items():
            commands += self.manager.handle(Reassign(instance, role), now)
        self.lent.clear()
        self._fresh.clear()
        return commands

    def _gather(self, now: int) -> list[Command]:
        """Keep those instances that have most unfinished samples, so that the fewest move."""
        seats = self.manager.seats
        order = sorted(seats, key=lambda instance: (-len(seats[instance].lives), instance))
        commands: list[Command] = []
        for instance in sorted(order[self._plan.kept :]):
            commands += self._lend(instance, now)
        return commands

    def _lend(self, instance: int, now: int) -> list[Command]:
        self.lent[instance] = self.manager.roster.role(instance)
        self._fresh[instance] = None
        commands = self.manager.handle(Reassign(instance, Role.LENT), now)
        self._take_ends(commands)
        return commands

    def _idle(self) -> list[int]:
        """Instances that will draw nothing more; one that may is kept as long as samples are drawn."""
        seats, manager = self.manager.seats, self.manager
        if manager.handover.waiting or len(manager.admission):
            return []
        found = [i for i, seat in seats.items() if i not in self.lent and not seat.lives]
        draws = any(i not in self.lent and seat.lives for i, seat in seats.items())
        return found if draws or not self._sample else []

    def _scores(self) -> list[Command]:
        """Deal out what is ready: the longest first, and pieces that get smaller, so that all end at once.
        Who has loaded the models that read goes first."""
        commands: list[Command] = []
        seats = self.manager.seats
        idle = [i for i in self.lent if i in seats and i not in self.reading and not seats[i].lives]
        free = deque(sorted(idle, key=lambda i: (i in self._fresh, i)))
        while free and self._ready and self._is_worth_it(free[0]):
            batches, readers = self._piece()
            commands.append(self._score(free.popleft(), batches, readers))
        return commands

    def _is_worth_it(self, instance: int) -> bool:
        """It has loaded what reads, or those that have would take longer with what is ready than it loads."""
        loaded = len(self.lent) - len(self._fresh)
        if instance not in self._fresh or not loaded:
            return True
        work = sum(len(readers) * sum(self._of(batch)) for batch, readers in self._ready.items())
        return work / self._plan.readers / loaded > self._plan.load_tokens

    def _piece(self) -> tuple[list[int], tuple[int, ...]]:
        """What the next instance scores: a share of what is ready, down to one batch with some of those who
        read it, so that the last batches are read by several instances at once."""
        work = {batch: len(readers) * sum(self._of(batch)) for batch, readers in self._ready.items()}
        sought = sum(work.values()) / (PIECES * len(self.manager.seats))
        first, *others = sorted(work, key=lambda batch: (-work[batch], batch))
        readers, found = self._ready[first], work[first]
        if found > sought:
            return [first], readers[: ceil(len(readers) * sought / found)]
        batches = [first]
        for batch in others:
            if found >= sought:
                break
            if self._ready[batch] == readers:
                batches.append(batch)
                found += work[batch]
        return sorted(batches), readers

    def _score(self, instance: int, batches: Sequence[int], readers: tuple[int, ...]) -> Score:
        why = self._why(len(batches))
        for batch in batches:
            rest = tuple(reader for reader in self._ready.pop(batch) if reader not in readers)
            if rest:
                self._ready[batch] = rest
        tokens = tuple(count for batch in batches for count in self._of(batch))
        id, loads = self.manager.flights.number(), instance in self._fresh
        score = Score(id, instance, tuple(batches), tokens, readers, loads, why)
        self._fresh.pop(instance, None)
        self.reading[instance] = score
        return score

    def _why(self, count: int) -> str:
        drawing = [i for i, seat in self.manager.seats.items() if seat.lives and i not in self.lent]
        said = f"{count} of {len(self._ready)} batches that are ready"
        if self._sample:
            said += f"; {len(self._sample)} samples are drawn meanwhile on {len(drawing)} instances"
        return said
