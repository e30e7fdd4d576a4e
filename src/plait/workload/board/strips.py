"""`Strips`: what each instance computed and received, as bars that a page can draw.

Like `Gantt`, but bounded: bars that are too short to be seen are merged, and what is too old goes.
"""

from dataclasses import dataclass

from plait.workload.board.picture import Lane

BARS = 200
"""On one lane, at most."""


@dataclass(slots=True)
class Stretch:
    """Something that occupies a lane."""

    begin_ns: int
    end_ns: int
    kind: str
    figure: int
    """Instances of the step, or number of moves."""


class Strips:
    """One lane for computing and one for copying on each instance."""

    def __init__(self, longest_ns: int) -> None:
        """`longest_ns`: past that is shown, where nothing begins anew by itself (`restart`)."""
        self._longest_ns: int | None = longest_ns
        self._cell_ns = 1_000_000
        """What is shorter than this is not seen."""
        self.begin_ns = 0
        self._lanes: dict[tuple[int, str], list[Stretch]] = {}

    def restart(self, now_ns: int) -> None:
        """Show everything from now on, ever more coarsely: an iteration begins."""
        self._lanes.clear()
        self._longest_ns, self.begin_ns, self._cell_ns = None, now_ns, 1_000_000

    def add(self, instance: int, lane: str, begin_ns: int, end_ns: int, kind: str, figure: int) -> None:
        """An instance did something until `end_ns`: no sooner than its lane was free, since it does one thing
        at a time."""
        bars = self._lanes.setdefault((instance, lane), [])
        begin_ns = max(begin_ns, bars[-1].end_ns if bars else self.begin_ns)
        _append(bars, Stretch(min(begin_ns, end_ns), end_ns, kind, figure), self._cell_ns)
        if len(bars) > BARS:
            self._thin(end_ns)

    def _thin(self, now_ns: int) -> None:
        if self._longest_ns is not None and now_ns - self.begin_ns > self._longest_ns:
            self.begin_ns = now_ns - self._longest_ns
            for bars in self._lanes.values():
                bars[:] = [bar for bar in bars if bar.end_ns > self.begin_ns]
        while any(len(bars) > BARS for bars in self._lanes.values()):
            self._cell_ns *= 2
            for bars in self._lanes.values():
                whole, bars[:] = list(bars), ()
                for bar in whole:
                    _append(bars, bar, self._cell_ns)

    def shown(self, instances: list[int], now_ns: int) -> tuple[int, tuple[Lane, ...]]:
        """Where they begin, in microseconds, and one for each instance."""
        first_ns = self.begin_ns
        if self._longest_ns is not None:
            first_ns = max(first_ns, now_ns - self._longest_ns)
        lanes = tuple(
            Lane(i, self._bars(i, "compute", first_ns), self._bars(i, "copy", first_ns)) for i in instances
        )
        return first_ns // 1000, lanes

    def _bars(self, instance: int, lane: str, first_ns: int) -> tuple[tuple[int, int, str, int], ...]:
        return tuple(
            (bar.begin_ns // 1000, (bar.end_ns - bar.begin_ns) // 1000, bar.kind, bar.figure)
            for bar in self._lanes.get((instance, lane), ())
            if bar.end_ns > first_ns
        )


def _append(bars: list[Stretch], bar: Stretch, cell_ns: int) -> None:
    """Lengthen the last bar by this one where no eye could tell them apart, else let it follow."""
    last = bars[-1] if bars else None
    if last is None or bar.begin_ns - last.end_ns >= cell_ns:
        bars.append(bar)
    elif bar.kind == last.kind and (bar.figure == last.figure or bar.kind == "move"):
        last.end_ns = bar.end_ns
        last.figure += bar.figure if bar.kind == "move" else 0
    elif bar.end_ns - last.begin_ns < cell_ns:
        # Too short for two: the longer one of both names it.
        if bar.end_ns - bar.begin_ns > last.end_ns - last.begin_ns:
            last.kind, last.figure = bar.kind, bar.figure
        last.end_ns = bar.end_ns
    else:
        bars.append(bar)
