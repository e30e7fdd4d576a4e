"""`Waterfall`: requests from arrival to end: the phases of each one, and what its caller waited for."""

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from plait.spec.request import Request
from plait.spec.slo import Slo
from plait.workload.board.picture import Latency, RequestRow
from plait.workload.board.quantile import quantile
from plait.workload.result import COMPLETED

SHOWN = 24
"""Requests that go on and requests that have ended, in the waterfall."""
NEWEST = 512
"""Completed requests whose latencies are described."""
PHASES = 24
"""Of one request that are remembered; one that is preempted more often than that loses its past."""


@dataclass(slots=True, eq=False)
class Course:
    """One request."""

    request: Request
    arrived_ns: int
    phases: list[tuple[int, str]] = field(default_factory=list)
    """(when it began, phase)."""
    phase: str = ""
    """The last of them."""
    first_ns: int = -1
    last_ns: int = -1
    """When its first and its newest token came; -1: none did."""
    tokens: int = 0
    end_ns: int = -1
    outcome: str = ""
    met: bool | None = None
    placed: bool = False
    """A step has begun with it."""

    @property
    def ttft_ns(self) -> int:
        """Arrival to first token, where one came."""
        return self.first_ns - self.arrived_ns

    @property
    def tpot_ns(self) -> float:
        """Mean after the first token; 0 where there is none. The same as `RequestRecord.tpot_ns`."""
        return (self.last_ns - self.first_ns) / (self.tokens - 1) if self.tokens > 1 else 0.0

    def row(self) -> RequestRow:
        """Its line of the waterfall."""
        return RequestRow(
            id=self.request.id,
            prompt_tokens=self.request.prompt_tokens,
            tokens=self.tokens,
            phases=tuple((at_ns // 1000, phase) for at_ns, phase in self.phases),
            first_us=self.first_ns // 1000 if self.first_ns >= 0 else None,
            end_us=self.end_ns // 1000 if self.end_ns >= 0 else None,
            outcome=self.outcome,
            met=self.met,
        )


class Waterfall:
    """Those that go on, the newest that ended, and counts of all."""

    def __init__(self, slo: Slo | None) -> None:
        self.slo = slo
        self.open: dict[int, Course] = {}
        """In the order of arrival."""
        self.phases: Counter[str] = Counter()
        """How many are in which phase."""
        self.outcomes: Counter[str] = Counter()
        self.arrived = 0
        self.prompt_tokens = 0
        self.tokens = 0
        self.completed = 0
        self.met = 0
        self.restarts = 0
        self.first_ns = -1
        """The first arrival."""
        self.end_ns = -1
        """The last end."""
        self._ended: deque[Course] = deque(maxlen=SHOWN)
        self._ttft_ms: deque[float] = deque(maxlen=NEWEST)
        self._tpot_ms: deque[float] = deque(maxlen=NEWEST)

    def arrive(self, request: Request, now_ns: int) -> None:
        """It waits."""
        self.open[request.id] = course = Course(request, now_ns)
        self.arrived += 1
        self.prompt_tokens += request.prompt_tokens
        if self.first_ns < 0:
            self.first_ns = now_ns
        self._enter(course, "queue", now_ns)

    def turn(self, request: int, phase: str, now_ns: int) -> None:
        """An open request is in another phase; nothing is said of one that has ended."""
        course = self.open.get(request)
        if course is not None and course.phase != phase:
            self.phases[course.phase] -= 1
            self._enter(course, phase, now_ns)

    def compute(self, request: int, opened: bool, first: int, now_ns: int) -> None:
        """A step computes tokens of its prompt from number `first` on; `opened`: as if it had not been there
        before. (A group that grows is told of the prompt again in the middle.)"""
        course = self.open.get(request)
        if course is None:
            return
        if opened and (course.phase != "prefill" or not first):
            self.restarts += course.placed
            course.placed = True
        self.turn(request, "prefill", now_ns)

    def draw(self, requests: Sequence[int], counts: Mapping[int, int] | None, now_ns: int) -> list[Course]:
        """Callers get tokens: one each, or so many as `counts` says. Returns those of these requests that did
        not decode until now. (This is called for every step with every row of it.)"""
        others: list[Course] = []
        courses, drawn = self.open, 0
        for request in requests:
            course = courses.get(request)
            if course is None:
                continue
            count = 1 if counts is None else counts[request]
            course.tokens += count
            course.last_ns = now_ns
            drawn += count
            if course.phase != "decode":
                others.append(course)
        self.tokens += drawn
        for course in others:
            if course.first_ns < 0:
                course.first_ns = now_ns
        return others

    def end(self, request: int, reason: str, tokens: int, now_ns: int) -> Course | None:
        """It is over; None: nobody knew it."""
        course = self.open.pop(request, None)
        if course is None:
            return None
        self.phases[course.phase] -= 1
        course.tokens, course.end_ns, course.outcome = tokens, now_ns, reason
        self.outcomes[reason] += 1
        self.end_ns = now_ns
        done = reason in COMPLETED and course.first_ns >= 0
        if self.slo is not None:
            course.met = done and self.slo.met(course.ttft_ns, course.tpot_ns)
            self.met += course.met
        if done:
            self.completed += 1
            self._ttft_ms.append(course.ttft_ns / 1e6)
            if tokens > 1:
                self._tpot_ms.append(course.tpot_ns / 1e6)
        self._ended.append(course)
        return course

    @property
    def waiting(self) -> int:
        """Of which nothing is computed, or nothing any more."""
        return self.phases["queue"]

    @property
    def running(self) -> int:
        """The others."""
        return len(self.open) - self.waiting

    @property
    def attainment(self) -> float | None:
        """Share of all ended requests that met the objectives."""
        ended = self.outcomes.total()
        return self.met / ended if self.slo is not None and ended else None

    @property
    def goodput(self) -> float | None:
        """Requests a second that met the objectives, from the first arrival to the last end."""
        span_ns = self.end_ns - self.first_ns
        return self.met / (span_ns / 1e9) if self.slo is not None and self.end_ns >= 0 < span_ns else None

    def latency(self) -> Latency:
        """Of the newest."""
        ttft, tpot = sorted(self._ttft_ms), sorted(self._tpot_ms)
        return Latency(
            len(ttft), quantile(ttft, 0.5), quantile(ttft, 0.99), quantile(tpot, 0.5), quantile(tpot, 0.99)
        )

    def rows(self) -> tuple[RequestRow, ...]:
        """The oldest that go on and the newest that ended, in the order of arrival."""
        shown = [*self._ended, *islice(self.open.values(), SHOWN)]
        return tuple(each.row() for each in sorted(shown, key=lambda each: each.arrived_ns))

    def _enter(self, course: Course, phase: str, now_ns: int) -> None:
        self.phases[phase] += 1
        if len(course.phases) == PHASES:
            del course.phases[1]
        course.phases.append((now_ns, phase))
        course.phase = phase
