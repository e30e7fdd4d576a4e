"""What `plait align` leaves in its folder: metrics by iteration, actions of the ranks."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from plait.spec.errors import UserError

CURVES = (
    "score",
    "reward",
    "kl",
    "kl_coefficient",
    "actor/loss",
    "actor/entropy",
    "actor/clip_fraction",
    "critic/loss",
    "critic/explained_variance",
    "tokens_p50",
    "rollout_gap",
)
"""Of all metrics, in the order in which they are shown."""
STAGES = ("generation", "reading", "training", "weights")
"""Whose seconds metrics have."""
POINTS = 400
BARS = 1500
PAUSE_US = 20_000.0
"""A rank that does nothing for so long stands between two orders."""


@dataclass(frozen=True, slots=True)
class RankBars:
    """What one training rank did: (begin_us, microseconds, model, F, B or W)."""

    rank: int
    bars: tuple[tuple[int, int, str, str], ...]


@dataclass(frozen=True, slots=True)
class AlignmentNow:
    """A run of `plait align`, as far as it has come."""

    iterations: tuple[int, ...]
    curves: Mapping[str, tuple[float | None, ...]]
    """By metric, at each of `iterations`."""
    seconds: Mapping[str, tuple[float | None, ...]]
    """By stage."""
    ranks: tuple[RankBars, ...] = ()
    """The last training step of all models; none before the run has ended."""


def read_metrics(lines: Iterable[bytes], name: str) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl.

    Raises:
        UserError: a line is none; `name` is the file's.
    """
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = msgspec.json.decode(line, type=dict[str, Any])
            row["iteration"] = int(row["iteration"])
        except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{name}, line {number}: no metrics of an iteration ({error})") from error
        rows.append(row)
    return rows


def alignment_of(rows: Sequence[Mapping[str, Any]], ranks: tuple[RankBars, ...] = ()) -> AlignmentNow:
    """Curves of these iterations; of more than `POINTS`, evenly chosen ones and the last."""
    every = -(-len(rows) // POINTS) or 1
    kept = [*rows[:-1:every], *rows[-1:]]
    return AlignmentNow(
        iterations=tuple(row["iteration"] for row in kept),
        curves={key: _column(kept, key) for key in CURVES if any(key in row for row in kept)},
        seconds={stage: _column(kept, f"seconds/{stage}") for stage in STAGES},
        ranks=ranks,
    )


def ranks_of(trace: bytes) -> tuple[RankBars, ...]:
    """The last of those training steps in a timeline.json that trained the most models: what ranks did
    between two moments at which all of them paused.

    Raises:
        UserError: it is no timeline of ranks.
    """
    try:
        told = msgspec.json.decode(trace, type=dict[str, Any])["traceEvents"]
        events = [(e["ts"], e["dur"], e["pid"], *_title(e["name"])) for e in told if e.get("cat") == "train"]
    except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"timeline.json is no timeline of ranks: {error!r}") from error
    last: list[_Event] = []
    for step in _steps(sorted(events)):
        if len({event[3] for event in step}) >= len({event[3] for event in last}):
            last = step
    zero_us = last[0][0] if last else 0.0
    found: dict[int, list[tuple[int, int, str, str]]] = {}
    for at_us, long_us, rank, model, kind in last[-BARS:]:
        found.setdefault(rank, []).append((round(at_us - zero_us), round(long_us), model, kind))
    return tuple(RankBars(rank, tuple(bars)) for rank, bars in sorted(found.items()))


_Event = tuple[float, float, int, str, str]
"""Begin and length in us, rank, model, F, B or W."""


def _steps(events: Sequence[_Event]) -> Iterable[list[_Event]]:
    """Events in order, cut where all ranks pause."""
    step: list[_Event] = []
    busy_us = 0.0
    for event in events:
        if step and event[0] - busy_us > PAUSE_US:
            yield step
            step = []
        step.append(event)
        busy_us = max(busy_us, event[0] + event[1])
    if step:
        yield step


def _title(name: str) -> tuple[str, str]:
    """`actor F3` is a forward of the Actor."""
    model, action = name.rsplit(" ", 1)
    return model, action[0]


def _column(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[float | None, ...]:
    return tuple(row.get(key) for row in rows)
