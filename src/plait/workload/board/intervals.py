"""`Intervals`: what happened in equal intervals of time, never more than so many of them.

Intervals begin short. When there are too many, each two become one, until they reach from the newest back
over `longest_ns`; from then on the oldest one goes.
"""

from dataclasses import dataclass, field

from plait.workload.board.picture import Curves
from plait.workload.board.quantile import quantile

MOST = 240
VALUES = 256
"""Latencies that an interval remembers; of more, every other one."""


@dataclass(slots=True)
class Interval:
    """Counts and extremes."""

    arrived: int = 0
    completed: int = 0
    met: int = 0
    tokens: int = 0
    waiting: int = 0
    running: int = 0
    kv_share: float = 0.0
    widest: int = 0
    ttft_ms: list[float] = field(default_factory=list)
    tpot_ms: list[float] = field(default_factory=list)

    def join(self, later: "Interval") -> None:
        """Take in the one that follows."""
        self.arrived += later.arrived
        self.completed += later.completed
        self.met += later.met
        self.tokens += later.tokens
        self.waiting = max(self.waiting, later.waiting)
        self.running = max(self.running, later.running)
        self.kv_share = max(self.kv_share, later.kv_share)
        self.widest = max(self.widest, later.widest)
        self.ttft_ms = _thinned(self.ttft_ms + later.ttft_ms)
        self.tpot_ms = _thinned(self.tpot_ms + later.tpot_ms)

    def latency(self, ttft_ms: float, tpot_ms: float | None) -> None:
        """Of a request that completed."""
        self.ttft_ms.append(ttft_ms)
        self.ttft_ms = _thinned(self.ttft_ms)
        if tpot_ms is not None:
            self.tpot_ms.append(tpot_ms)
            self.tpot_ms = _thinned(self.tpot_ms)


class Intervals:
    """Intervals without gaps."""

    def __init__(self, first_ns: int, longest_ns: int | None) -> None:
        """
        Args:
            first_ns: width of the first intervals.
            longest_ns: past that is kept; None: all of it, ever more coarsely.
        """
        self._step_ns, self._longest_ns = first_ns, longest_ns
        self._begin = 0
        """Number of the first interval, counted in steps from time 0."""
        self._kept: list[Interval] = [Interval()]
        self._level = (0, 0, 0.0)
        """What later intervals begin with: requests that wait and run, the share of KV that is held."""

    def at(self, now_ns: int) -> Interval:
        """The newest interval; time does not go back."""
        while (number := now_ns // self._step_ns - self._begin) >= MOST:
            if self._longest_ns is not None and self._step_ns * MOST >= self._longest_ns:
                gone = min(number - MOST + 1, len(self._kept))
                del self._kept[:gone]
                self._begin += number - MOST + 1
            else:
                self._coarsen()
        while len(self._kept) <= number:
            waiting, running, kv_share = self._level
            self._kept.append(Interval(waiting=waiting, running=running, kv_share=kv_share))
        return self._kept[number]

    def hold(self, now_ns: int, waiting: int, running: int, kv_share: float) -> None:
        """So it is from now on, until the next call."""
        interval = self.at(now_ns)
        level = waiting, running, kv_share
        if level == self._level:
            return
        self._level = level
        interval.waiting = max(interval.waiting, waiting)
        interval.running = max(interval.running, running)
        interval.kv_share = max(interval.kv_share, kv_share)

    def _coarsen(self) -> None:
        if self._begin % 2:
            self._kept.insert(0, Interval())
            self._begin -= 1
        joined = self._kept[::2]
        for sooner, later in zip(joined, self._kept[1::2], strict=False):
            sooner.join(later)
        self._kept, self._begin, self._step_ns = joined, self._begin // 2, 2 * self._step_ns

    def curves(self) -> Curves:
        """For a picture."""
        kept = self._kept
        ttft = [sorted(each.ttft_ms) for each in kept]
        tpot = [sorted(each.tpot_ms) for each in kept]
        return Curves(
            begin_us=self._begin * self._step_ns // 1000,
            step_us=self._step_ns // 1000,
            arrived=tuple(each.arrived for each in kept),
            completed=tuple(each.completed for each in kept),
            met=tuple(each.met for each in kept),
            tokens=tuple(each.tokens for each in kept),
            ttft_p50_ms=tuple(_short(quantile(each, 0.5)) for each in ttft),
            ttft_p90_ms=tuple(_short(quantile(each, 0.9)) for each in ttft),
            tpot_p50_ms=tuple(_short(quantile(each, 0.5)) for each in tpot),
            tpot_p90_ms=tuple(_short(quantile(each, 0.9)) for each in tpot),
            waiting=tuple(each.waiting for each in kept),
            running=tuple(each.running for each in kept),
            kv_share=tuple(round(each.kv_share, 4) for each in kept),
            widest=tuple(each.widest for each in kept),
        )


def _thinned(values: list[float]) -> list[float]:
    return values[::2] if len(values) > VALUES else values


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
