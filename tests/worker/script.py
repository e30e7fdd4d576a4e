"""Random schedules for an `Executor`: mixed batches, chunks, preemption, shared prefixes, reused slots."""

import random
from dataclasses import dataclass, field

from plait.spec.sampling import Draw, Opened, SamplingParams
from plait.spec.step import Extent, Row, Span, Step
from plait.worker.executor import Executor


@dataclass(frozen=True)
class Task:
    """One request to carry out."""

    prompt: tuple[int, ...]
    outputs: int
    sampling: SamplingParams = field(default_factory=lambda: SamplingParams(temperature=0))


@dataclass
class Live:
    """A request under way. Pages [0, told) were named to the executor."""

    task: Task
    draws: list[Draw] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)
    computed: int = 0
    told: int = 0
    open: bool = False

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.task.prompt + tuple(t for draw in self.draws for t in draw.tokens)

    @property
    def finished(self) -> bool:
        return len(self.draws) == self.task.outputs


@dataclass(frozen=True)
class Habits:
    """How a schedule behaves."""

    batch: int = 1
    """Most rows in a step."""
    chunk: int = 10**6
    """Most new tokens of a row in a step."""
    preempt: float = 0.0
    """Chance that a step throws a row out; its KV is computed again later."""
    share: bool = False
    """Take the pages of another row whose tokens begin alike."""


class Script:
    """Carries out tasks on an executor and keeps what was drawn."""

    def __init__(self, executor: Executor, tasks: list[Task], habits: Habits, seed: int) -> None:
        self.executor, self.habits, self.rng = executor, habits, random.Random(seed)
        self.page = executor.model.pool.page
        self.live = [Live(task) for task in tasks]
        self.free = list(range(executor.model.pool.slots // self.page))
        self.rng.shuffle(self.free)
        self.users: dict[int, int] = {}
        self.steps = self.shared = self.preempted = self.repeated = 0
        self.closed: list[int] = []

    def run(self) -> list[list[Draw]]:
        """All draws of each task."""
        while any(not live.finished for live in self.live):
            self._step()
        self._tell(Step(self.steps, (self.executor.instance,), (), closed=tuple(self.closed)), ())
        assert not self.executor.rows.states, "a row is still open"
        return [live.draws for live in self.live]

    def _step(self) -> None:
        waiting = [i for i, live in enumerate(self.live) if not live.finished]
        chosen = self.rng.sample(waiting[: 2 * self.habits.batch], min(len(waiting), self.habits.batch))
        rows, again, opened, counts = [], [], [], {}
        for i in chosen:
            live = self.live[i]
            if live.open and self.rng.random() < self.habits.preempt:
                self._release(i)
                self.preempted += 1
                continue
            if not live.open:
                live.open = True
                opened.append(Opened(i, live.tokens, len(live.task.prompt), live.task.sampling, ()))
                self._take_shared(live)
            counts[i] = self._describe(i, rows, again)
        step = Step(
            self.steps,
            (self.executor.instance,),
            tuple(rows),
            tuple(again),
            tuple(o.request for o in opened),
            tuple(self.closed),
        )
        draws = self._tell(step, tuple(opened))
        for i, draw in zip([row.request for row in rows] + again, draws, strict=True):
            live = self.live[i]
            live.computed += counts[i]
            if draw.tokens:
                live.draws.append(draw)
            if live.finished:
                self._release(i)

    def _tell(self, step: Step, opened: tuple[Opened, ...]) -> tuple[Draw, ...]:
        self.closed = []
        self.steps += 1
        return self.executor.run(step, opened)

    def _describe(self, i: int, rows: list[Row], again: list[int]) -> int:
        """Put one row into the step; returns how many tokens it computes."""
        live = self.live[i]
        known = len(live.tokens)
        count = min(known - live.computed, self.rng.randint(1, self.habits.chunk))
        ahead = 0 if len(live.pages) * self.page >= live.computed + count else self.rng.randint(0, 8)
        while len(live.pages) * self.page < live.computed + count + ahead:
            page = self.free.pop()
            self.users[page] = 1
            live.pages.append(page)
        fresh = live.pages[live.told :]
        decodes = live.draws and live.computed == known - 1
        if decodes and not fresh and live.told and self.rng.random() < 0.8:
            again.append(i)
            self.repeated += 1
            return 1
        extents = tuple(Extent(page * self.page, self.page) for page in fresh)
        spans = (Span(self.executor.instance, live.told * self.page, extents),) if fresh else ()
        live.told = len(live.pages)
        ends = live.computed + count == known
        rows.append(
            Row(
                i,
                live.computed,
                count,
                given=not decodes,
                draws=ends,
                spans=spans,
                master=self.executor.instance,
            )
        )
        return count

    def _take_shared(self, live: Live) -> None:
        """Use the full pages of the row that shares most of its beginning."""
        if not self.habits.share:
            return
        best: list[int] = []
        for other in self.live:
            if other is live or not other.open:
                continue
            limit = min(other.computed, len(live.tokens) - 1)
            alike = 0
            while alike < limit and other.tokens[alike] == live.tokens[alike]:
                alike += 1
            if alike // self.page > len(best):
                best = other.pages[: alike // self.page]
        for page in best:
            self.users[page] += 1
        live.pages, live.computed = list(best), len(best) * self.page
        self.shared += len(best)

    def _release(self, i: int) -> None:
        live = self.live[i]
        for page in live.pages:
            self.users[page] -= 1
            if not self.users[page]:
                self.free.insert(self.rng.randint(0, len(self.free)), page)
        live.pages, live.computed, live.told, live.open = [], 0, 0, False
        self.closed.append(i)
