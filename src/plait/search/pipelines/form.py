"""Schedules as text: CSV that reads back, a picture for people, and a trace for ui.perfetto.dev."""

import json
from pathlib import Path
from typing import Any

from plait.search.pipelines.timing import ScheduleTiming, measure
from plait.spec.errors import UserError
from plait.spec.schedule import Action, Kind, PipelineProblem, PipelineSchedule


def to_csv(schedule: PipelineSchedule) -> str:
    """A line for each rank, a cell for each action: model, stage, kind and micro-batch, as in `0.3F12`."""
    return "".join(",".join(map(str, row)) + "\n" for row in schedule.rows)


def from_csv(text: str) -> PipelineSchedule:
    """What `to_csv` wrote.

    Raises:
        UserError: a cell is no action; says where.
    """
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        cells = [cell.strip() for cell in line.split(",") if cell.strip()]
        rows.append(tuple(_action(cell, number) for cell in cells))
    return PipelineSchedule(tuple(rows))


def _action(cell: str, line: int) -> Action:
    model, dot, rest = cell.partition(".")
    kind = next((kind for kind in Kind if kind.value in rest), None)
    if dot and kind is not None:
        stage, _, micro_batch = rest.partition(kind.value)
        if model.isdecimal() and stage.isdecimal() and micro_batch.isdecimal():
            return Action(int(model), int(stage), kind, int(micro_batch))
    raise UserError(f"line {line}: {cell!r} is no action; write it like 0.3F12")


def picture(problem: PipelineProblem, schedule: PipelineSchedule, width: int = 100) -> str:
    """A line for each rank over time: models as letters from a to v, forwards small, backwards large, W as
    `w` whatever the model, dots where nothing runs."""
    timing = measure(problem, schedule)
    scale = width / timing.makespan_s
    lines = []
    for rank, row in enumerate(schedule.rows):
        cells = ["."] * width
        for action, start, end in zip(row, timing.starts_s[rank], timing.ends_s[rank], strict=True):
            letter = chr(ord("a") + action.model % 22)
            mark = {Kind.F: letter, Kind.B: letter.upper(), Kind.W: "w"}[action.kind]
            for at in range(int(start * scale), max(int(end * scale), int(start * scale) + 1)):
                cells[min(at, width - 1)] = mark
        lines.append(f"{rank:3d} {''.join(cells)}")
    return "\n".join(lines) + "\n"


def trace(problem: PipelineProblem, schedule: PipelineSchedule) -> list[dict[str, Any]]:
    """Chrome trace events: a process for each rank, a slice for each action, a counter of bytes held."""
    timing = measure(problem, schedule)
    events: list[dict[str, Any]] = []
    for rank in range(len(schedule.rows)):
        name = {"name": f"rank {rank}"}
        events.append({"name": "process_name", "ph": "M", "pid": rank, "tid": 0, "args": name})
        events.extend(_slices(problem, schedule, timing, rank))
    return events


def _slices(
    problem: PipelineProblem, schedule: PipelineSchedule, timing: ScheduleTiming, rank: int
) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    held = 0.0
    for action, start, end in zip(
        schedule.rows[rank], timing.starts_s[rank], timing.ends_s[rank], strict=True
    ):
        pipeline = problem.models[action.model]
        place = {"pid": rank, "tid": 0, "ts": start * 1e6}
        title = f"{pipeline.name or action.model} {action.kind.value}{action.micro_batch}"
        args = {"model": action.model, "stage": action.stage, "micro-batch": action.micro_batch}
        events.append(
            {
                "name": title,
                "cat": action.kind.value,
                "ph": "X",
                "dur": (end - start) * 1e6,
                **place,
                "args": args,
            }
        )
        if action.kind is Kind.F:
            held += pipeline.kept_bytes[action.stage]
            events.append({"name": "held", "ph": "C", **place, "args": {"bytes": held}})
        elif action.kind is pipeline.kinds[-1]:
            held -= pipeline.kept_bytes[action.stage]
            events.append(
                {"name": "held", "ph": "C", "pid": rank, "tid": 0, "ts": end * 1e6, "args": {"bytes": held}}
            )
    return events


def save_trace(path: Path, problem: PipelineProblem, schedule: PipelineSchedule) -> None:
    """Write the trace as JSON that ui.perfetto.dev opens."""
    path.write_text(json.dumps({"displayTimeUnit": "ms", "traceEvents": trace(problem, schedule)}))
