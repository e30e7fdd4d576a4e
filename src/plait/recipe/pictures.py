"""Pictures of a run, as SVG in one page: drawn from what its stages left behind. Needs the `report` extra."""

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("svg")

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from plait.workload.board.alignment import AlignmentNow
from plait.workload.gantt import Gantt
from plait.workload.result import RequestRecord

NS = 1e9
WIDE = 9.0
"""Inches of a picture."""
TraceEvent = Mapping[str, Any]
"""One entry of a Chrome trace, as `workload.timeline` makes them."""
STEPS = {"decode": "#3b7dd8", "described": "#d8703b", "mixed": "#8a5fbf"}
STEP_NAMES = {"decode": "decode", "described": "prefill", "mixed": "both"}
WORK = {"generate": "#3b7dd8", "score": "#d8703b"}
TRAINED = {
    ("actor", "F"): "#9cc1ee",
    ("actor", "B"): "#3b7dd8",
    ("critic", "F"): "#efbf9c",
    ("critic", "B"): "#d8703b",
}
DIRECTIONS = {"F": "forward", "B": "backward", "W": "weights"}
GREY = "#bbbbbb"
UNITS = {
    "size": (1e6, "MB of weights"),
    "memory": (1e6, "MB of weights in memory"),
    "kv": (1e3, "kB of keys and values a token"),
    "tpot": (1e6, "ms a decode step"),
}
"""What a cost is divided by, and then called."""
MEASURED: Mapping[str, Any] = {"color": "#3b7dd8", "alpha": 0.5, "label": "measured"}
CHOSEN: Mapping[str, Any] = {"color": "#d8703b", "markersize": 14, "label": "chosen"}


def svg(figure: Figure) -> str:
    """The picture's element."""
    text = io.StringIO()
    figure.savefig(text, format="svg")
    return text.getvalue()[text.getvalue().index("<svg") :]


def curves(run: AlignmentNow) -> Figure:
    """Reward and divergence from the reference by iteration, and where the seconds went."""
    figure, at = Figure(figsize=(WIDE, 2.8), layout="constrained"), run.iterations
    reward, kl, seconds = figure.subplots(1, 3)
    reward.plot(at, run.curves["score"], marker="o", label="score")
    reward.plot(at, run.curves["reward"], marker=".", linestyle="--", label="less the weighed divergence")
    kl.plot(at, run.curves["kl"], marker="o", color="#d8703b")
    below = np.zeros(len(at))
    for stage, spent in run.seconds.items():
        values = np.array([value or 0.0 for value in spent])
        seconds.bar(at, values, bottom=below, label=stage)
        below += values
    for axes, name in ((reward, "mean reward"), (kl, "KL from the reference, nats"), (seconds, "seconds")):
        axes.set(xlabel="iteration", ylabel=name, xticks=list(at))
        axes.grid(alpha=0.3)
    reward.legend(frameon=False, fontsize="small")
    seconds.legend(ncols=2, loc="lower right", bbox_to_anchor=(1, 1), frameon=False, fontsize="small")
    return figure


def drawn_and_scored(gantt: Gantt) -> Figure:
    """Which instance drew samples when, and which scored those that had ended."""
    rows = sorted(gantt.rows())
    figure, axes = _lanes_figure(rows)
    zero_ns = min(bar.begin_ns for bar in gantt.bars)
    for kind, colour in WORK.items():
        for place, row in enumerate(rows):
            chosen = [bar for bar in gantt.bars if (bar.row, bar.kind) == (row, kind)]
            bars = [((b.begin_ns - zero_ns) / NS, (b.end_ns - b.begin_ns) / NS) for b in chosen]
            axes.broken_barh(bars, (place - 0.4, 0.8), facecolors=colour, linewidth=0)
        axes.plot([], [], color=colour, linewidth=6, label=kind)
    _key(axes, 2)
    axes.set(xlabel="seconds since the first sample was asked for")
    return figure


def last_step(run: AlignmentNow) -> Figure:
    """The pipelines of Actor and Critic, fused on the same ranks, in the last training step."""
    figure, axes = _lanes_figure([f"rank {each.rank}" for each in run.ranks])
    for (model, action), colour in TRAINED.items():
        for place, each in enumerate(run.ranks):
            bars = [
                (at / 1e6, long / 1e6)
                for at, long, name, kind in each.bars
                if (name, kind) == (model, action)
            ]
            axes.broken_barh(bars, (place - 0.4, 0.8), facecolors=colour, edgecolor="white", linewidth=0.5)
        axes.plot([], [], color=colour, linewidth=6, label=f"{model} {DIRECTIONS[action]}")
    _key(axes, 4)
    axes.set(xlabel="seconds since the step began")
    return figure


def front(report: Mapping[str, Any]) -> Figure:
    """Divergence over each cost that has a budget: measured and chosen; over the first, predictions too."""
    limits = report["limits"]
    figure = Figure(figsize=(WIDE, 3.2), layout="constrained")
    for place, (name, limit) in enumerate(limits.items()):
        axes, (scale, unit) = figure.add_subplot(1, len(limits), place + 1), UNITS[name]
        if place == 0:
            _predicted(axes, report["front"], name, scale)
        measured = report["measured"]
        axes.plot([row[name] / scale for row in measured], [row["kl"] for row in measured], "o", **MEASURED)
        chosen_kl = np.exp(-report["search"]["measured"])
        axes.plot([report["costs"][name] / scale], [chosen_kl], "*", **CHOSEN)
        axes.axvline(limit / scale, color=GREY, linestyle="--", label="budget")
        axes.set(xlabel=unit, ylabel="KL from the reference, nats a token", yscale="log")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize="small")
    return figure


def _predicted(axes: Axes, rows: Sequence[Mapping[str, Any]], name: str, scale: float) -> None:
    at = [row[name] / scale for row in rows]
    low, high = zip(*(row["interval"] for row in rows), strict=True)
    axes.fill_between(at, low, high, alpha=0.2, label="90 % interval")
    axes.plot(at, [row["predicted_kl"] for row in rows], label="predicted best")


def policy(units: Mapping[str, Mapping[str, float]]) -> Figure:
    """Bits of the weights that were chosen for each projection of each block."""
    cells = [(*_placed(name), told["weight_bits"]) for name, told in units.items() if "weight_bits" in told]
    kinds = list(dict.fromkeys(kind for _, kind, _ in cells))
    bits = np.full((len(kinds), 1 + max(block for block, _, _ in cells)), np.nan)
    for block, kind, value in cells:
        bits[kinds.index(kind), block] = value
    figure = Figure(figsize=(WIDE, 0.9 + 0.25 * len(kinds)), layout="constrained")
    axes = figure.add_subplot()
    levels = sorted({value for _, _, value in cells})
    shown = axes.imshow(bits, aspect="auto", cmap="viridis", interpolation="nearest")
    axes.set_yticks(range(len(kinds)), kinds)
    axes.set(xlabel="block")
    figure.colorbar(shown, ax=axes, ticks=levels, label="bits a weight")
    return figure


def _placed(name: str) -> tuple[int, str]:
    """Block and projection of a unit: model.layers.3.mlp.up_proj."""
    parts = name.split(".")
    return next(int(part) for part in parts if part.isdigit()), parts[-1]


def candidates(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """What the placements that the planner measured bear on each device, with 95 % intervals."""
    figure = Figure(figsize=(WIDE, 0.8 + 0.42 * len(rows)), layout="constrained")
    axes, places = figure.add_subplot(), range(len(rows))
    values = np.array([row["per_device"] for row in rows])
    ends = np.array([row["interval"] for row in rows])
    spread = np.abs(ends.T - values)
    colours = ["#d8703b", *["#3b7dd8"] * (len(rows) - 1)]
    axes.barh(places, values, xerr=spread, color=colours, height=0.6, ecolor="#444444", capsize=3)
    axes.set_yticks(places, [row["candidate"] for row in rows], fontsize="small")
    axes.invert_yaxis()
    axes.set(xlabel="requests/s a device within the objectives")
    axes.grid(alpha=0.3, axis="x")
    return figure


def requests(
    records: Sequence[RequestRecord], held: Sequence[int], away_s: tuple[float, float] | None
) -> Figure:
    """Each request from its arrival to its first token and its last.

    Args:
        held: those that had keys and values on the worker that was killed.
        away_s: when it was lost, and when it was back.
    """
    ordered = sorted(records, key=lambda record: record.arrival_ns)
    figure = Figure(figsize=(WIDE, 0.9 + 0.13 * len(ordered)), layout="constrained")
    axes = figure.add_subplot()
    waits, writes = [], []
    for place, each in enumerate(ordered):
        first_ns = each.token_ns[0] if each.token_ns else each.end_ns
        waits.append((place, each.arrival_ns / NS, (first_ns - each.arrival_ns) / NS))
        writes.append((place, first_ns / NS, (each.end_ns - first_ns) / NS, each.id in held))
    axes.barh(*zip(*((p, w) for p, _, w in waits), strict=True), left=[b for _, b, _ in waits], color=GREY)
    for hit, colour, name in (
        (False, "#3b7dd8", "writes"),
        (True, "#d8703b", "writes, and lost its keys and values"),
    ):
        chosen = [(place, begin, long) for place, begin, long, lost in writes if lost is hit]
        if chosen:
            at, begin, long = zip(*chosen, strict=True)
            axes.barh(at, long, left=begin, color=colour, label=name)
    axes.plot([], [], color=GREY, linewidth=6, label="waits and reads")
    _mark(axes, away_s)
    axes.invert_yaxis()
    axes.set(xlabel="seconds since the server began", ylabel="request")
    _key(axes, 4)
    return figure


def latencies(records: Sequence[RequestRecord]) -> Figure:
    """Shares of the requests that were as fast as this."""
    figure = Figure(figsize=(WIDE, 2.8), layout="constrained")
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


def instances(
    events: Sequence[TraceEvent], roles: Mapping[int, str], away_s: tuple[float, float] | None
) -> Figure:
    """Steps of each instance, and moves of keys and values to it."""
    slices = [event for event in events if event["ph"] == "X"]
    pids = sorted({event["pid"] for event in slices})
    figure, axes = _lanes_figure([f"{pid - 1}: {roles.get(pid - 1, 'instance')}" for pid in pids])
    kinds = [
        *((kind, STEP_NAMES[kind], colour, 0.8) for kind, colour in STEPS.items()),
        ("move", "move", "#2f9e6e", 0.3),
    ]
    for kind, name, colour, tall in kinds:
        for place, pid in enumerate(pids):
            bars = [(e["ts"] / 1e6, e["dur"] / 1e6) for e in slices if e["pid"] == pid and e["name"] == kind]
            axes.broken_barh(bars, (place - tall / 2, tall), facecolors=colour, linewidth=0)
        axes.plot([], [], color=colour, linewidth=6, label=name)
    _mark(axes, away_s)
    axes.set(xlabel="seconds since the server began")
    _key(axes, 5)
    return figure


def queue_and_memory(events: Sequence[TraceEvent]) -> Figure:
    """Requests that wait and run, and tokens whose keys and values instances hold."""
    figure = Figure(figsize=(WIDE, 2.8), layout="constrained")
    queue, memory = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    counts = [event for event in events if event["ph"] == "C"]
    for name in ("waiting", "running"):
        _steps(queue, [e for e in counts if e["name"] == "queue"], name, name)
    for pid in sorted({e["pid"] for e in counts if e["name"] == "KV"}):
        mine = [e for e in counts if e["name"] == "KV" and e["pid"] == pid]
        _steps(memory, mine, "tokens", f"instance {pid - 1}")
    queue.set(ylabel="requests")
    memory.set(ylabel="tokens with keys and values")
    for axes in (queue, memory):
        axes.set(xlabel="seconds since the server began", ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    return figure


def _steps(axes: Axes, events: Iterable[TraceEvent], key: str, label: str) -> None:
    points = [(event["ts"] / 1e6, event["args"][key]) for event in events]
    axes.step([at for at, _ in points], [value for _, value in points], where="post", label=label)


def _lanes_figure(names: Sequence[str]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDE, 0.9 + 0.45 * max(len(names), 1)), layout="constrained")
    axes = figure.add_subplot()
    axes.set_yticks(range(len(names)), names)
    return figure, axes


def _mark(axes: Axes, away_s: tuple[float, float] | None) -> None:
    if away_s is not None:
        axes.axvspan(*away_s, color="#c62828", alpha=0.12, label="a worker is away")
        axes.axvline(away_s[0], color="#c62828", linewidth=1)


def _key(axes: Axes, columns: int) -> None:
    axes.legend(ncols=columns, loc="lower right", bbox_to_anchor=(1, 1), frameon=False, fontsize="small")
