"""Random steps of random groups: any members, masters and retention, growing and shrinking, opening again."""

import random
from dataclasses import dataclass, field
from itertools import pairwise

from plait.spec.sampling import Opened
from plait.spec.step import Extent, Keep, Row, Span, Step
from tests.worker.band import Band
from tests.worker.script import Task


@dataclass
class Part:
    """What a request has on one instance."""

    kept: int = 0
    pages: list[int] = field(default_factory=list)
    told: int = 0


@dataclass
class Live:
    """A request under way."""

    task: Task
    drawn: list[int] = field(default_factory=list)
    kept: list[Keep] = field(default_factory=list)
    """Intervals of positions, in order."""
    parts: dict[int, Part] = field(default_factory=dict)
    known: set[int] = field(default_factory=set)
    """Instances that know all that there is to know of it."""
    told: set[int] = field(default_factory=set)
    master: int = -1
    drawer: int = -1

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.task.prompt + tuple(self.drawn)

    @property
    def computed(self) -> int:
        return sum(keep.count for keep in self.kept)

    @property
    def finished(self) -> bool:
        return len(self.drawn) == self.task.outputs


class ElasticScript:
    """Carries out tasks on a band. Instances keep their pools from one script to the next."""

    def __init__(self, band: Band, tasks: list[Task], rng: random.Random, first_id: int = 0) -> None:
        self.band, self.rng, self.step = band, rng, first_id
        self.base = first_id * 1000
        pool = band.players[0].executor.model.pool
        self.page = pool.page
        self.live = {self.base + i: Live(task) for i, task in enumerate(tasks)}
        self.free = {player.instance: list(range(pool.slots // pool.page)) for player in band.players}
        for pages in self.free.values():
            rng.shuffle(pages)
        self.closed: dict[int, list[int]] = {player.instance: [] for player in band.players}
        self.counts: dict[str, int] = dict.fromkeys(
            ("striped", "decoded", "again", "reopened", "preempted"), 0
        )
        self.degrees: set[int] = set()
        self.before: tuple[list[int], list[int]] = [], []
        """Rows and group of the last step."""

    def run(self) -> list[list[int]]:
        """What each task drew."""
        while any(not live.finished for live in self.live.values()):
            self._step()
        for player in self.band.players:
            closed = tuple(self.closed[player.instance])
            self.band.run(Step(self._id(), (player.instance,), (), closed=closed))
            assert not player.executor.rows.states, "a row is still open"
        return [live.drawn for live in self.live.values()]

    def _id(self) -> int:
        self.step += 1
        return self.step

    def _step(self) -> None:
        chosen, order = self.before
        steady = bool(chosen) and self.rng.random() < 0.6
        steady &= all(self.live[i].drawn and not self.live[i].finished for i in chosen)
        if not steady:
            chosen, order = self.before = self._chosen()
        self.degrees.add(len(order))
        rows, again, opened = [], [], []
        for i in chosen:
            self._describe(i, order, rows, again, opened, steady)
        ids = tuple(o.request for o in opened)
        closed = self._closed(order, ids)
        step = Step(self._id(), tuple(order), tuple(rows), tuple(again), ids, tuple(dict.fromkeys(closed)))
        draws = self.band.run(step, tuple(opened))
        for i, draw in zip([row.request for row in rows] + again, draws, strict=True):
            live = self.live[i]
            live.known = set(order) if i in ids else live.known & set(order)
            assert bool(draw.tokens) == (live.computed == len(live.tokens))
            if draw.tokens:
                live.drawn += draw.tokens
                live.drawer = live.master
            if live.finished:
                self._release(i)

    def _chosen(self) -> tuple[list[int], list[int]]:
        """Some rows, and a group of all that keep some of them."""
        waiting = [i for i, live in self.live.items() if not live.finished]
        chosen = self.rng.sample(waiting, min(len(waiting), self.rng.randint(1, 4)))
        for i in chosen:
            if self.live[i].kept and self.rng.random() < 0.03:
                self._release(i)
                self.counts["preempted"] += 1
        group = {keep.instance for i in chosen for keep in self.live[i].kept}
        others = [player.instance for player in self.band.players if player.instance not in group]
        group |= set(self.rng.sample(others, self.rng.randint(0 if group else 1, len(others))))
        return chosen, self.rng.sample(sorted(group), len(group))

    def _closed(self, order: list[int], opened: tuple[int, ...]) -> list[int]:
        """What the members may forget. A request that was opened again elsewhere is still known to some of
        the group: who should have forgotten it does so later."""
        used = {i for i, live in self.live.items() if i in opened or live.known & set(order)}
        closed = [i for member in order for i in self.closed[member] if i not in used]
        for member in order:
            self.closed[member] = [i for i in self.closed[member] if i in used and i not in opened]
        return closed

    def _describe(
        self, i: int, order: list[int], rows: list, again: list, opened: list, steady: bool
    ) -> None:
        """`steady`: nothing changes that need not."""
        live, first, n = self.live[i], self.live[i].computed, len(order)
        left = len(live.tokens) - first
        prompt = left > 1 or not live.drawn
        count = self.rng.randint(1, left) if prompt else 1
        stride = n if prompt else 1
        draws = first + count == len(live.tokens)
        if prompt:
            kept = self._division(first, count, order)
            master = order[(count - 1) % n]
        else:
            same = live.master in order and (steady or self.rng.random() < 0.7)
            master = live.master if same else self.rng.choice(order)
            kept = [Keep(master, first, 1)]
        fresh = not (set(order) <= live.known) or (not prompt and master != live.drawer)
        if not fresh and not steady and self.rng.random() < 0.1:
            fresh = True
            self.counts["reopened"] += 1
        changed = master != live.master
        live.master = master
        live.kept += kept
        spans = self._grow(live, kept, order, fresh)
        if not prompt and not fresh and not spans and not changed:
            again.append(i)
            self.counts["again"] += 1
            return
        self.counts["striped" if prompt else "decoded"] += 1
        if fresh:
            state = Opened(i, live.tokens, len(live.task.prompt), live.task.sampling, ())
            opened.append(state)
            live.told |= set(order)
        told = live.kept if fresh else kept if prompt else []
        if not prompt and fresh:
            told = live.kept[:-1] or [Keep(master, 0, 0)]
        rows.append(Row(i, first, count, stride, prompt, draws, tuple(spans), master, tuple(told)))

    def _division(self, first: int, count: int, order: list[int]) -> list[Keep]:
        """Random intervals for random members."""
        cuts = sorted({0, count, *(self.rng.randint(0, count) for _ in range(self.rng.randint(0, 3)))})
        pairs = pairwise(cuts)
        return [Keep(self.rng.choice(order), first + begin, past - begin) for begin, past in pairs]

    def _grow(self, live: Live, kept: list[Keep], order: list[int], fresh: bool) -> list[Span]:
        """Slots for what is kept; spans of what the members must be told."""
        for keep in kept:
            part = live.parts.setdefault(keep.instance, Part())
            part.kept += keep.count
            ahead = self.rng.randint(0, 6)
            while len(part.pages) * self.page < part.kept:
                part.pages.append(self.free[keep.instance].pop())
                if ahead and len(self.free[keep.instance]) > 40:
                    part.pages += [self.free[keep.instance].pop() for _ in range(ahead // self.page)]
        spans = []
        for instance in order:
            part = live.parts.get(instance)
            if part is None:
                continue
            told = 0 if fresh else part.told
            extents = tuple(Extent(page * self.page, self.page) for page in part.pages[told:])
            if extents:
                spans.append(Span(instance, told * self.page, extents))
            part.told = len(part.pages)
        return spans

    def _release(self, i: int) -> None:
        live = self.live[i]
        for instance, part in live.parts.items():
            self.free[instance] += part.pages
        for instance in live.told:
            self.closed[instance].append(i)
        live.parts, live.kept, live.known, live.told = {}, [], set(), set()
        live.master = live.drawer = -1
