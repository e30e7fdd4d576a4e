"""`Probe`: the rate that a candidate bears, found by serving a workload faster and faster in virtual time.

Each rate serves the same requests, with the same gaps between them, only closer together: what differs
between two rates, or between two candidates, is never chance (common random numbers).
"""

from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np

from plait.planner.candidate import Candidate
from plait.planner.fluid import SLACK, Fluid
from plait.planner.placed import placed
from plait.sim.scenario import Scenario
from plait.spec.command import Command, End, Token
from plait.spec.errors import UserError
from plait.spec.event import Arrived, Event
from plait.spec.slo import Slo
from plait.workload import arrivals, lengths
from plait.workload.result import COMPLETED
from plait.workload.trace import TraceRow, stretched

NS = 1e9
ATTAINMENT = 0.9
"""Share of requests that meet both objectives at goodput."""


PRECISION = 0.02
"""Of a rate found by bisection, relative."""
MOST = 2000
"""Requests that a run needs at most to settle."""


class Settled(Exception):
    """Whether enough requests meet their objectives is known before all have ended."""


@dataclass(slots=True)
class Judge:
    """Observes a run of `count` requests and ends it as soon as its verdict cannot change."""

    slo: Slo
    count: int
    share: float = ATTAINMENT
    met: int = 0
    missed: int = 0
    _arrived: dict[int, int] = field(default_factory=dict)
    """Request -> arrival, until its first token."""
    _order: deque[int] = field(default_factory=deque)
    _first: dict[int, int] = field(default_factory=dict)
    """Request -> its first token, until it ends. A request that has missed is in neither."""

    @property
    def good(self) -> bool:
        """Enough requests have met their objectives."""
        return self.met >= self.share * self.count

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
        if self.good or self.missed > (1 - self.share) * self.count:
            raise Settled

    def _drew(self, request: int, now_ns: int) -> None:
        if now_ns - self._arrived.pop(request) <= self.slo.ttft_ns:
            self._first[request] = now_ns
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
        """Requests that still wait for a first token that would come too late."""
        while self._order:
            arrival_ns = self._arrived.get(self._order[0])
            if arrival_ns is not None and now_ns - arrival_ns <= self.slo.ttft_ns:
                return
            if arrival_ns is not None:
                del self._arrived[self._order[0]]
                self.missed += 1
            self._order.popleft()


@dataclass(frozen=True, slots=True)
class Found:
    """A rate of one candidate, by one sequence of requests."""

    rate_hz: float
    """Highest rate tried at which enough requests met their objectives; 0: none."""
    requests: int
    """Of a run."""
    runs: int


@dataclass(frozen=True, slots=True)
class Probe:
    """Serves a candidate's single copy under requests drawn from a trace."""

    fluid: Fluid
    trace: Sequence[TraceRow]
    cv: float = 1.0
    """Spread of the gaps between arrivals; 1 is Poisson."""

    def scenario(self, candidate: Candidate, copies: int = 1) -> Scenario:
        """Copies of a candidate on the cluster.

        Raises:
            UserError: the nodes have no room for them.
        """
        plans = self.fluid.plans
        placement = candidate.place(plans.cluster, copies, self.fluid.step_tokens)
        if placement is None:
            raise UserError(
                f"{copies} x ({candidate}) find no room on {plans.cluster.nodes} nodes", "cluster"
            )
        return placed(placement, plans)

    def requests(self, seed: int, count: int) -> list[TraceRow]:
        """Requests with the trace's lengths that come at one a second."""
        rng = np.random.default_rng(seed)
        times = arrivals.gamma(rng, 1.0, self.cv, count)
        picked = lengths.resampled(rng, self.trace, count)
        return [
            replace(row, arrival_ns=at, block_hashes=())
            for at, row in zip(times.tolist(), picked, strict=True)
        ]

    def bears(self, scenario: Scenario, rows: Sequence[TraceRow], rate_hz: float) -> bool:
        """Whether enough of these requests meet their objectives at a rate."""
        judge = Judge(self.fluid.slo, len(rows))
        with suppress(Settled):
            scenario.run(stretched(rows, 1 / rate_hz), [judge.see])
        return judge.good

    def goodput(self, candidate: Candidate, seed: int, count: int, steps: int, guess_hz: float) -> Found:
        """Bisect the rate of one copy between 0 and its bound, beginning at a guess.

        Args:
            candidate: what serves.
            seed: of the requests.
            count: requests of a run.
            steps: most runs.
            guess_hz: where the answer is expected.
        """
        bound_hz = self.fluid.bound_hz(candidate) * SLACK
        rows = self.requests(seed, count)
        scenario = self.scenario(candidate)
        low_hz, high_hz, rate_hz, width = 0.0, bound_hz, min(guess_hz, bound_hz), 1.1
        for run in range(steps):
            if self.bears(scenario, rows, rate_hz):
                low_hz = rate_hz
            else:
                high_hz = rate_hz
            if low_hz == bound_hz or high_hz - low_hz < PRECISION * high_hz:
                return Found(low_hz, len(rows), run + 1)
            # Close to the guess first: it is usually good.
            middle = (low_hz + high_hz) / 2
            near = min(middle, low_hz * width) if low_hz == rate_hz else max(middle, high_hz / width)
            rate_hz, width = near, width**2
        return Found(low_hz, len(rows), steps)

    def settling(self, rate_hz: float) -> int:
        """Requests that come while one stays, if that is not too many: in fewer, no queue would fill."""
        slo, demand = self.fluid.slo, self.fluid.demand
        stay_s = (slo.ttft_ns + demand.steps * slo.tpot_ns) / NS
        return min(MOST, round(rate_hz * stay_s))
