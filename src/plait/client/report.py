"""A run as one HTML page: figures, plots and answers, with nothing to fetch from elsewhere."""

import io
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import matplotlib

matplotlib.use("svg")

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from plait import __version__
from plait.workload.result import RequestRecord, Summary

TraceEvent = Mapping[str, Any]
"""One entry of a Chrome trace, as `workload.timeline` makes them."""

COLOURS = {"decode": "#3b7dd8", "described": "#d8703b", "mixed": "#8a5fbf"}
LABELS = {"decode": "decode", "described": "prefill", "mixed": "both"}


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question and the model's answer."""

    question: str
    answer: str


def write_report(
    path: Path,
    meta: Mapping[str, Any],
    exchanges: Sequence[Exchange],
    summary: Summary,
    records: Sequence[RequestRecord],
    events: Sequence[TraceEvent],
) -> None:
    """Write the page to `path`.

    Args:
        meta: shown as it is: model, instances, workload.
        events: the run's timeline.
    """
    template = files("plait.client").joinpath("report.html.j2").read_text()
    page = jinja2.Environment(autoescape=True).from_string(template)
    plots = [
        ("Latency of each request", _svg(_latencies(records))),
        ("What each instance did", _svg(_lanes(events))),
        ("Queue and memory", _svg(_counters(events))),
    ]
    path.write_text(
        page.render(
            meta=meta,
            version=__version__,
            machine=f"{platform.machine()}, Python {platform.python_version()}",
            exchanges=exchanges,
            latencies=summary.latency_rows(),
            totals=summary.total_rows(),
            plots=plots,
        )
    )


def _latencies(records: Sequence[RequestRecord]) -> Figure:
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    done = [record for record in records if record.completed]
    for axes, name, values in (
        (figure.add_subplot(1, 2, 1), "time to first token, ms", [r.ttft_ns / 1e6 for r in done]),
        (figure.add_subplot(1, 2, 2), "time per output token, ms", [r.tpot_ns / 1e6 for r in done]),
    ):
        ordered = np.sort(values)
        axes.step(ordered, np.arange(1, len(ordered) + 1) / max(len(ordered), 1), where="post")
        axes.set(xlabel=name, ylabel="share of requests", ylim=(0, 1.02), xlim=(0, None))
        axes.grid(alpha=0.3)
    return figure


def _lanes(events: Sequence[TraceEvent]) -> Figure:
    slices = [event for event in events if event["ph"] == "X"]
    pids = sorted({event["pid"] for event in slices})
    figure = Figure(figsize=(9, 0.8 + 0.5 * max(len(pids), 1)), layout="constrained")
    axes = figure.add_subplot()
    for kind, colour in COLOURS.items():
        for row, pid in enumerate(pids):
            bars = [(e["ts"] / 1e6, e["dur"] / 1e6) for e in slices if e["pid"] == pid and e["name"] == kind]
            axes.broken_barh(bars, (row - 0.4, 0.8), facecolors=colour, linewidth=0)
        axes.plot([], [], color=colour, linewidth=6, label=LABELS[kind])
    axes.set_yticks(range(len(pids)), [f"instance {pid - 1}" for pid in pids])
    axes.set(xlabel="seconds since start")
    axes.legend(ncols=3, loc="lower right", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def _counters(events: Sequence[TraceEvent]) -> Figure:
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    queue, memory = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    counts = [event for event in events if event["ph"] == "C"]
    for name in ("waiting", "running"):
        _steps(queue, [e for e in counts if e["name"] == "queue"], name, name)
    for pid in sorted({e["pid"] for e in counts if e["name"] == "KV"}):
        mine = [e for e in counts if e["name"] == "KV" and e["pid"] == pid]
        _steps(memory, mine, "tokens", f"instance {pid - 1}")
    queue.set(ylabel="requests")
    memory.set(ylabel="tokens with KV")
    for axes in (queue, memory):
        axes.set(xlabel="seconds since start", ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    return figure


def _steps(axes: Axes, events: Iterable[TraceEvent], key: str, label: str) -> None:
    points = [(event["ts"] / 1e6, event["args"][key]) for event in events]
    axes.step([at for at, _ in points], [value for _, value in points], where="post", label=label)


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg")
    return text.getvalue()[text.getvalue().index("<svg") :]
