"""`Probe`: the rate that a candidate bears, found by serving a workload faster and faster in virtual time.

Each rate serves the same requests, with the same gaps between them, only closer together: what differs
between two rates, or between two candidates, is never chance (common random numbers).
"""

from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush

import numpy as np

from plait.planner.fluid import ATTAINMENT
from plait.sim.scenario import Scenario
from plait.spec.command import Command, End, Token
from plait.spec.errors import UserError
from plait.spec.event import Arrived, Event
from plait.spec.slo import Slo
from plait.workload import arrivals, lengths
from plait.workload.result import COMPLETED
from plait.workload.trace import TraceRow, stretched

PRECISION = 0.02
"""Of a rate found by bisection, relative."""


class Settled(Exception):
    """Whether enough requests meet their objectives is known before all have ended."""


@dataclass(slots=True)
class Judge:
    """Observes a run of these requests and ends it as soon as its verdict cannot change."""

    slo: Slo
    outputs: Sequence[int]
    """Tokens that each will draw, by id."""
    share: float = ATTAINMENT
    met: int = 0
    missed: int = 0
    _arrived: dict[int, int] = field(default_factory=dict)
    """Request -> arrival, until its first token."""
    _order: deque[int] = field(default_factory=deque)
    _first: dict[int, int] = field(default_factory=dict)
    """Request -> its first token, until it ends. A request that has missed is in neither."""
    _last: list[tuple[float, int]] = field(default_factory=list)
    """Heap of (latest end that meets TPOT, request)."""

    @property
    def good(self) -> bool:
        """Enough requests have met their objectives."""
        return self.met >= self.share * len(self.outputs)

    def see(self, now_ns: int, event: Event, commands: Sequence[Command]) -> None:
        """Take one call of `handle`.

        Raises:
            Settled: the verdict is known.
        """
        if isinstance(event, Arrived):
            self._arrived[event.request.id] = now_ns
            self._order.append(event.request.id)
        for command in commands:
            if isinstance(command, Token):
                for request in self._arrived.keys() & command.requests:
                    self._drew(request, now_ns)
            elif isinstance(command, End):
                self._ended(command, now_ns)
        self._late(now_ns)
        if self.good or self.missed > (1 - self.share) * len(self.outputs):
            raise Settled

    def _drew(self, request: int, now_ns: int) -> None:
        if now_ns - self._arrived.pop(request) <= self.slo.ttft_ns:
            self._first[request] = now_ns
            rest_ns = (self.outputs[request] - 1) * self.slo.tpot_ns
            heappush(self._last, (now_ns + rest_ns, request))
        else:
            self.missed += 1

    def _ended(self, end: End, now_ns: int) -> None:
        self.missed += self._arrived.pop(end.request, None) is not None
        first_ns = self._first.pop(end.request, None)
        if first_ns is None:
            return
        tpot_ns = (now_ns - first_ns) / max(end.tokens - 1, 1)
        met = end.reason.value in COMPLETED and tpot_ns <= self.slo.tpot_ns
        self.met += met
        self.missed += not met

    def _late(self, now_ns: int) -> None:
        """Requests whose next token, or last one, would come too late whenever it came."""
        while self._last and self._last[0][0] < now_ns:
            request = heappop(self._last)[1]
            self.missed += self._first.pop(request, None) is not None
        while self._order:
            arrival_ns = self._arrived.get(self._order[0])
            if arrival_ns is not None and now_ns - arrival_ns <= self.slo.ttft_ns:
                return
            if arrival_ns is not None:
                del self._arrived[self._order[0]]
                self.missed += 1
            self._order.popleft()


@dataclass(frozen=True, slots=True)
class Probe:
    """Serves requests drawn from a trace."""

    trace: Sequence[TraceRow]
    slo: Slo
    cv: float = 1.0
    """Spread of the gaps between arrivals; 1 is Poisson."""

    def requests(self, seed: int, count: int) -> list[TraceRow]:
        """Requests with the trace's lengths that come at one a second: the first `count` of one sequence, so
        that runs of different lengths begin alike."""
        of_times, of_lengths = np.random.default_rng(seed).spawn(2)
        times = arrivals.gamma(of_times, 1.0, self.cv, count)
        picked = lengths.resampled(of_lengths, self.trace, count)
        return [
            replace(row, arrival_ns=at, block_hashes=())
            for at, row in zip(times.tolist(), picked, strict=True)
        ]

    def bears(self, scenario: Scenario, rows: Sequence[TraceRow], rate_hz: float) -> bool:
        """Whether enough of these requests meet their objectives at a rate."""
        judge = Judge(self.slo, [row.output_tokens for row in rows])
        with suppress(Settled):
            scenario.run(stretched(rows, 1 / rate_hz), [judge.see])
        return judge.good


@dataclass(frozen=True, slots=True)
class Trial:
    """One scenario, to be served one sequence of requests faster and faster."""

    probe: Probe
    scenario: Scenario
    seed: int
    """Of the requests."""
    count: int
    """Requests of a run."""
    near_hz: float
    """The rate that is tried first."""
    high_hz: float
    """More than it can bear."""
    runs: int = 8
    """Most rates that are tried."""
    challenge: bool = False
    """End at once if it does not bear the first rate."""


@dataclass(frozen=True, slots=True)
class Tried:
    """What came of a trial."""

    rate_hz: float
    """The highest of the rates tried that was borne; 0: none."""
    reason: str = ""
    """Why it could not be evaluated; empty: it was."""


def tried(trial: Trial) -> Tried:
    """Bisect, close to the first rate at first and farther and farther from it."""
    try:
        return Tried(_bisected(trial))
    except UserError as error:
        return Tried(0.0, str(error))


def _bisected(trial: Trial) -> float:
    rows = trial.probe.requests(trial.seed, trial.count)
    low_hz, high_hz, width = 0.0, trial.high_hz, 1.08
    rate_hz = min(trial.near_hz, high_hz)
    for run in range(trial.runs):
        if trial.probe.bears(trial.scenario, rows, rate_hz):
            low_hz = rate_hz
        elif trial.challenge and run == 0:
            break
        else:
            high_hz = rate_hz
        if high_hz - low_hz < PRECISION * high_hz:
            break
        middle_hz = (low_hz + high_hz) / 2
        rate_hz = min(middle_hz, low_hz * width) if low_hz == rate_hz else max(middle_hz, high_hz / width)
        width **= 2
    return low_hz
