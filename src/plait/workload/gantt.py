"""`Gantt`: who did what when, as a picture in text, as CSV, and as a trace for ui.perfetto.dev.

A row is an instance or a rank; what it does not do is idle, and a summary says how much of each row's time
went where. `Seen` makes the rows of an iteration's generation and scoring from the calls of a core.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from plait.spec.command import Command, Score
from plait.spec.event import Event, Scored, StepDone
from plait.spec.step import Step

GAP_NS = 1_000_000
"""Work of a kind that goes on sooner than this is one bar."""


@dataclass(frozen=True, slots=True)
class Bar:
    """Something that occupies a row."""

    row: str
    kind: str
    begin_ns: int
    end_ns: int


@dataclass(slots=True)
class Gantt:
    """Bars, in the order in which they ended."""

    bars: list[Bar] = field(default_factory=list)

    def add(self, row: str, kind: str, begin_ns: int, end_ns: int) -> None:
        """One more bar."""
        self.bars.append(Bar(row, kind, begin_ns, end_ns))

    @property
    def end_ns(self) -> int:
        """Of the last bar."""
        return max((bar.end_ns for bar in self.bars), default=0)

    def rows(self) -> list[str]:
        """In the order in which they first appear."""
        return list(dict.fromkeys(bar.row for bar in self.bars))

    def shares(self) -> dict[str, float]:
        """Of all rows' time until the last of each row's group ended, by kind; the rest is `idle`. A row's
        group is its first word: instances and ranks are the same devices at different times."""
        groups: dict[str, list[Bar]] = {}
        for bar in self.bars:
            groups.setdefault(bar.row.split()[0], []).append(bar)
        spent: dict[str, float] = {}
        whole = 0.0
        for bars in groups.values():
            span = max(bar.end_ns for bar in bars) - min(bar.begin_ns for bar in bars)
            rows = len({bar.row for bar in bars})
            whole += rows * span
            for bar in bars:
                spent[bar.kind] = spent.get(bar.kind, 0.0) + bar.end_ns - bar.begin_ns
        spent["idle"] = whole - sum(spent.values())
        return {kind: ns / whole for kind, ns in spent.items()} if whole else {}

    def csv(self) -> str:
        """A line for each bar: row, kind, begin and end in ns."""
        lines = [f"{bar.row},{bar.kind},{bar.begin_ns},{bar.end_ns}\n" for bar in self.bars]
        return "row,kind,begin_ns,end_ns\n" + "".join(lines)

    def picture(self, width: int = 100) -> str:
        """A line for each row over time: the first letter of what it does, dots where it does nothing."""
        rows, scale = self.rows(), width / max(1, self.end_ns)
        cells = {row: ["."] * width for row in rows}
        for bar in self.bars:
            first = min(int(bar.begin_ns * scale), width - 1)
            for at in range(first, max(first + 1, min(width, round(bar.end_ns * scale)))):
                cells[bar.row][at] = bar.kind[0]
        pad = max(map(len, rows), default=0)
        return "".join(f"{row:<{pad}} {''.join(cells[row])}\n" for row in rows)

    def trace(self) -> list[dict[str, Any]]:
        """Chrome trace events: a process for each row."""
        numbers = {row: number for number, row in enumerate(self.rows())}
        events: list[dict[str, Any]] = [
            {"name": "process_name", "ph": "M", "pid": number, "tid": 0, "args": {"name": row}}
            for row, number in numbers.items()
        ]
        for bar in self.bars:
            times = {"ts": bar.begin_ns / 1e3, "dur": (bar.end_ns - bar.begin_ns) / 1e3}
            events.append({"name": bar.kind, "ph": "X", "pid": numbers[bar.row], "tid": 0, **times})
        return events

    def save(self, path: Path) -> None:
        """Write CSV, the picture or the trace, by the file's ending: .csv, .txt, or anything else."""
        if path.suffix == ".csv":
            path.write_text(self.csv())
        elif path.suffix == ".txt":
            path.write_text(self.picture())
        else:
            told = {"displayTimeUnit": "ms", "traceEvents": self.trace()}
            path.write_bytes(msgspec.json.encode(told))


class Seen:
    """An observer that draws the rows of instances: generation and scoring."""

    def __init__(self, gantt: Gantt) -> None:
        self._gantt = gantt
        self._asked: dict[int, tuple[int, Step | Score]] = {}
        self._drawing: dict[int, tuple[int, int]] = {}
        """Instance -> begin and end of the bar that its steps make."""

    def see(self, now_ns: int, event: Event, commands: Sequence[Command]) -> None:
        """Take one call of `handle`."""
        if isinstance(event, StepDone):
            begun_ns, step = self._asked.pop(event.step, (now_ns, None))
            if isinstance(step, Step):
                for member in step.group:
                    self._drew(member, begun_ns, now_ns)
        elif isinstance(event, Scored):
            begun_ns, score = self._asked.pop(event.score, (now_ns, None))
            if isinstance(score, Score):
                self._settle([score.instance])
                self._gantt.add(f"instance {score.instance}", "score", begun_ns, now_ns)
        for command in commands:
            if isinstance(command, Step | Score):
                self._asked[command.id] = now_ns, command

    def close(self) -> None:
        """Draw what is still open."""
        self._settle(list(self._drawing))

    def _drew(self, instance: int, begin_ns: int, end_ns: int) -> None:
        first_ns, last_ns = self._drawing.get(instance, (begin_ns, begin_ns))
        if begin_ns - last_ns > GAP_NS:
            self._settle([instance])
            first_ns = begin_ns
        self._drawing[instance] = first_ns, end_ns

    def _settle(self, instances: Iterable[int]) -> None:
        for instance in instances:
            if instance in self._drawing:
                begin_ns, end_ns = self._drawing.pop(instance)
                self._gantt.add(f"instance {instance}", "generate", begin_ns, end_ns)
