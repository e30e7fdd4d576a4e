"""How results look: tables for reading, JSON for programs."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from plait.workload.result import RequestRecord, Summary, as_json


def progress() -> Progress:
    """A bar on stderr that goes away when the work is done."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, console=Console(stderr=True), transient=True)


def show(
    title: str,
    summary: Summary,
    records: Sequence[RequestRecord],
    meta: Mapping[str, Any],
    json_out: str | None,
) -> None:
    """Print the tables of a run and write its JSON; with `-` as its file, the JSON alone goes to stdout."""
    encoded = msgspec.json.format(msgspec.json.encode(as_json(summary, records, meta)))
    if json_out == "-":
        sys.stdout.write(encoded.decode() + "\n")
        return
    console = Console(highlight=False)
    console.print(_latencies(title, summary), _totals(summary))
    if json_out is not None:
        Path(json_out).write_bytes(encoded + b"\n")


def warn(errors: Sequence[str]) -> None:
    """Name at most five kinds of failure on stderr."""
    console = Console(stderr=True, highlight=False)
    for error in errors[:5]:
        console.print("[yellow]failed:[/yellow]", escape(error))
    if len(errors) > 5:
        console.print(f"[yellow]and {len(errors) - 5} other kinds of failure[/yellow]")


def _latencies(title: str, summary: Summary) -> Table:
    table = Table("ms", "mean", "p50", "p90", "p99", title=title, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, spread in summary.latency_rows():
        figures = (spread.mean, spread.p50, spread.p90, spread.p99) if spread else ()
        table.add_row(name, *(f"{figure:,.2f}" for figure in figures))
    return table


def _totals(summary: Summary) -> Table:
    table = Table(show_header=False)
    for name, value in summary.total_rows():
        table.add_row(name, value)
    return table
