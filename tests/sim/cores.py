"""Cores small enough to reason about, for tests of the world itself."""

from collections import deque

from plait.spec.command import Command, End, Token, Wake
from plait.spec.event import Aborted, Arrived, Event, StepDone, WorkerLost, WorkerUp
from plait.spec.request import EndReason, Request
from plait.spec.step import Row, Step


class Ticker:
    """Does nothing but ask to be woken, `count` times: what is left is the loop."""

    def __init__(self, count: int) -> None:
        self.left = count

    def handle(self, event: Event, now_ns: int) -> list[Command]:
        self.left -= 1
        return [Wake(now_ns + 10)] if self.left > 0 else []


class Queue:
    """First come, first served on one instance, one request a step, one token each."""

    def __init__(self) -> None:
        self.waiting: deque[Request] = deque()
        self.running: Request | None = None
        self.steps = 0

    def handle(self, event: Event, now_ns: int) -> list[Command]:
        out: list[Command] = []
        if isinstance(event, Arrived):
            self.waiting.append(event.request)
        elif isinstance(event, StepDone):
            assert self.running is not None
            done, self.running = self.running.id, None
            out += [Token(event.step, (done,)), End(done, EndReason.LENGTH, 1)]
        if self.running is None and self.waiting:
            self.running = self.waiting.popleft()
            self.steps += 1
            row = Row(self.running.id, 0, self.running.prompt_tokens, draws=True)
            out.append(Step(self.steps, (0,), (row,), opened=(self.running.id,)))
        return out


class Small:
    """Whole prompts and decodes together, one step in flight on each live instance, requests by turns.

    An aborted request is forgotten at once, a lost instance's requests start again from what they had.
    """

    def __init__(self, described: bool = False) -> None:
        self.described = described
        """Describe decodes (`rows`) instead of naming them (`again`)."""
        self.requests: dict[int, Request] = {}
        self.drawn: dict[int, int] = {}
        self.home: dict[int, int] = {}
        self.fresh: set[int] = set()
        self.up: list[int] = []
        self.flying: dict[int, Step] = {}
        self.steps = 0

    def handle(self, event: Event, now_ns: int) -> list[Command]:
        out: list[Command] = []
        if isinstance(event, Arrived):
            request = event.request
            self.requests[request.id] = request
            self.drawn[request.id] = 0
            self.fresh.add(request.id)
        elif isinstance(event, Aborted) and event.request in self.requests:
            out.append(self._end(event.request, EndReason.ABORTED))
        elif isinstance(event, WorkerUp):
            self.up.append(event.instance)
        elif isinstance(event, WorkerLost):
            self.up.remove(event.instance)
            self.flying.pop(event.instance, None)
            self.fresh |= {r for r, home in self.home.items() if home == event.instance}
        elif isinstance(event, StepDone):
            out += self._done(event)
        return out + self._plan()

    def _done(self, event: StepDone) -> list[Command]:
        instance = next(i for i, step in self.flying.items() if step.id == event.step)
        step = self.flying.pop(instance)
        names = (*(row.request for row in step.rows), *step.again)
        told, out = [], []
        for index, request in enumerate(names):
            if request not in self.requests:
                continue
            told.append(request)
            self.drawn[request] += event.tokens[index]
            if index in event.stopped:
                out.append(self._end(request, EndReason.STOP))
            elif self.drawn[request] == self.requests[request].max_tokens:
                out.append(self._end(request, EndReason.LENGTH))
        return [Token(event.step, tuple(told)), *out]

    def _end(self, request: int, reason: EndReason) -> End:
        del self.requests[request]
        self.home.pop(request, None)
        self.fresh.discard(request)
        return End(request, reason, self.drawn.pop(request))

    def _plan(self) -> list[Command]:
        return [self._step(i) for i in self.up if i not in self.flying and self._mine(i)]

    def _mine(self, instance: int) -> list[int]:
        for request in sorted(self.fresh):
            if self.up:
                self.home[request] = self.up[request % len(self.up)]
        return [r for r in self.requests if self.home.get(r) == instance]

    def _step(self, instance: int) -> Step:
        mine = self._mine(instance)
        self.steps += 1
        rows = tuple(self._row(r) for r in mine if r in self.fresh or self.described)
        again = tuple(r for r in mine if r not in self.fresh and not self.described)
        context = sum(self.requests[r].prompt_tokens + self.drawn[r] for r in again)
        opened = tuple(r for r in mine if r in self.fresh)
        self.fresh -= set(mine)
        step = Step(self.steps, (instance,), rows, again, opened, context_tokens=context)
        self.flying[instance] = step
        return step

    def _row(self, request: int) -> Row:
        known = self.requests[request].prompt_tokens + self.drawn[request]
        if request in self.fresh:
            return Row(request, 0, known, draws=True)
        return Row(request, known - 1, 1, given=False, draws=True)
