"""`Driver`: the live loop. Facts go into the core, its commands are carried out, observers see both.

fronts: submit, abort --.                          .--> Step, Move, Cancel -> fleet
fleet: answers ---------+--> core.handle(event) ---+--> Token -> streams
clock: Woken -----------'      (one at a time)     '--> End   -> streams, Wake -> clock
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Protocol

from plait.runtime.stream import Stream
from plait.spec.adapter import Adapter
from plait.spec.command import Command, End, Score, Token, Wake
from plait.spec.errors import EngineFailure, PlaitError
from plait.spec.event import (
    Aborted,
    Arrived,
    Event,
    StepDone,
    StepFailed,
    Stopped,
    Woken,
    WorkerLost,
)
from plait.spec.move import Cancel, Move
from plait.spec.request import Request
from plait.spec.sampling import Draw, Opened
from plait.spec.step import Step
from plait.workload.journal import Core, Observer


class Sink(Protocol):
    """Who hears of what happens in a fleet. Called in the event loop's thread."""

    def post(self, event: Event) -> None:
        """A fact about workers or a failed step."""

    def answered(self, step: int, draws: tuple[Draw, ...]) -> None:
        """A step is done on all members of its group."""

    def fail(self, error: PlaitError) -> None:
        """No worker will ever come back."""


class Fleet(Protocol):
    """Workers, wherever they run. Gives exactly one answer to each step, unless a worker is lost."""

    async def start(self, sink: Sink) -> None:
        """Start all workers; each one is reported as WorkerUp when it is ready.

        Raises:
            PlaitError: no worker can ever be ready, and why.
        """

    def submit(self, step: Step, opened: tuple[Opened, ...]) -> None:
        """Send a step to the members of its group."""

    def move(self, move: Move) -> None:
        """Have a move carried out. Its answer is posted as `Moved` or `MoveFailed`, exactly once, unless its
        target is lost."""

    def cancel(self, move: int) -> None:
        """Have a move answered soon; nothing happens to one that was answered."""

    async def load(self, version: int, folder: str, files: dict[str, str]) -> None:
        """Give all workers other weights, whose files have these checksums; nothing may be in flight.

        Raises:
            EngineFailure: a worker cannot use them.
        """

    async def adapt(self, adapter: Adapter) -> None:
        """Have all workers, also those that are started later, carry out rows with this adapter.

        Raises:
            UserError: a worker cannot have it; then none has.
        """

    def unadapt(self, number: int) -> None:
        """No step from now on has a row with this adapter."""

    async def kill(self, instance: int) -> None:
        """End the processes of an instance at once, as a crash would; they are replaced."""

    async def close(self) -> None:
        """Let all workers go; returns when they are gone."""


class Driver:
    """Feeds one core. Not thread-safe: everything happens in one event loop."""

    def __init__(
        self,
        core: Core,
        fleet: Fleet,
        observers: Sequence[Observer] = (),
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.core = core
        self.fleet = fleet
        self.streams: dict[int, Stream] = {}
        """Requests that have not ended."""
        self.ends: Counter[str] = Counter()
        """Requests that ended, by reason."""
        self.drawn_tokens = 0
        """Tokens given to callers."""
        self.failure: PlaitError | None = None
        """Why nothing can be served any more."""
        self.observers = list(observers)
        """See every call of the core, in order."""
        self.score: Callable[[Score], None] | None = None
        """Carries out `Score`, and posts `Scored` in the end. Scores come from several instances at once."""
        self._clock_ns = clock_ns
        self._zero_ns = clock_ns()
        self._now_ns = 0
        self._inbox: deque[tuple[Event, dict[int, Draw]]] = deque()
        self._busy = False
        self._steps: dict[int, Step] = {}
        self._sampled: dict[int, Draw] = {}
        self._timers: set[asyncio.TimerHandle] = set()

    def now_ns(self) -> int:
        """Time since the driver was made."""
        return self._clock_ns() - self._zero_ns

    # ---- facts ---------------------------------------------------------------------------------

    def submit(self, request: Request, stream: Stream) -> None:
        """A caller asks for something; `stream` gets the answer."""
        self.streams[request.id] = stream
        self.post(Arrived(request))

    def abort(self, request: int) -> None:
        """A caller left."""
        self.post(Aborted(request))

    def answered(self, step: int, draws: tuple[Draw, ...]) -> None:
        """See `Sink`."""
        made = self._steps.pop(step)
        counts = tuple(len(draw.tokens) for draw in draws)
        stopped = tuple(index for index, draw in enumerate(draws) if draw.stopped)
        by_request = dict(zip(made.requests, draws, strict=True))
        for row in made.rows:
            logprobs = by_request[row.request].prompt_logprobs
            if logprobs and row.request in self.streams:
                self.streams[row.request].push_prompt(row.first + 1, logprobs)
        self._take(StepDone(step, counts, stopped), by_request)

    def post(self, event: Event) -> None:
        """See `Sink`."""
        self._take(event, {})

    def fail(self, error: PlaitError) -> None:
        """See `Sink`. Everything that was accepted ends with this error."""
        self.failure = error
        for request, stream in list(self.streams.items()):
            stream.fail(EngineFailure(str(error)))
            self.post(Aborted(request))

    def close(self) -> None:
        """Send no more wake-ups; what is still open fails."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self.fail(EngineFailure("the engine was closed"))

    # ---- the loop ------------------------------------------------------------------------------

    def _take(self, event: Event, draws: dict[int, Draw]) -> None:
        """Handle an event now, or after the one whose commands are being carried out."""
        self._inbox.append((event, draws))
        if self._busy:
            return
        self._busy = True
        try:
            while self._inbox:
                self._handle(*self._inbox.popleft())
        finally:
            self._busy = False

    def _handle(self, event: Event, draws: dict[int, Draw]) -> None:
        self._now_ns = max(self.now_ns(), self._now_ns + 1)
        self._sampled = draws
        if isinstance(event, StepFailed):
            self._steps.pop(event.step, None)
        elif isinstance(event, WorkerLost):
            self._steps = {id: step for id, step in self._steps.items() if event.instance not in step.group}
        commands = self.core.handle(event, self._now_ns)
        for observe in tuple(self.observers):
            observe(self._now_ns, event, commands)
        for command in commands:
            self._carry_out(command)

    def _carry_out(self, command: Command) -> None:
        match command:
            case Step():
                self._steps[command.id] = command
                self.fleet.submit(command, tuple(self._opened(command)))
            case Move():
                self.fleet.move(command)
            case Cancel():
                self.fleet.cancel(command.move)
            case Token():
                for request in command.requests:
                    self._deliver(request, self._sampled[request])
            case End():
                self.ends[command.reason] += 1
                self.streams.pop(command.request).end(command.reason)
            case Wake():
                self._wake(command)
            case Score():
                assert self.score is not None, "nobody scores"
                self.score(command)

    def _opened(self, step: Step) -> list[Opened]:
        first = {row.request: row.first for row in step.rows}
        states = []
        for request in step.opened:
            stream = self.streams[request]
            if stream.begun_s is None:
                stream.begun_s, stream.cached_tokens = time.perf_counter(), first[request]
            states.append(
                Opened(
                    request=request,
                    tokens=tuple(stream.tokens),
                    prompt_tokens=stream.prompt_tokens,
                    sampling=stream.ask.sampling,
                    stop_ids=stream.stop_ids,
                    adapter=stream.adapter,
                )
            )
        return states

    def _deliver(self, request: int, draw: Draw) -> None:
        self.drawn_tokens += len(draw.tokens)
        count = self.streams[request].push(draw)
        if count is not None:
            self.post(Stopped(request, count))

    def _wake(self, command: Wake) -> None:
        loop = asyncio.get_running_loop()

        def wake() -> None:
            self._timers.discard(timer)
            self.post(Woken(command.at_ns))

        timer = loop.call_later(max(0, command.at_ns - self.now_ns()) / 1e9, wake)
        self._timers.add(timer)
