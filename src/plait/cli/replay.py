"""`plait replay`: what a journal says, as a result, as a timeline, and as a proof."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from plait.cli import report, workload
from plait.cost.fitted import Fitted
from plait.sim.measured import timings
from plait.sim.scenario import core_from
from plait.spec.errors import UserError
from plait.spec.slo import Slo
from plait.workload.journal import read_journal
from plait.workload.journal import replay as replay_entries
from plait.workload.result import Recorder, Summary
from plait.workload.timeline import timeline


def replay(
    journal: Annotated[Path, typer.Argument(help="A journal of a live or simulated run.")],
    perfetto: Annotated[Path | None, typer.Option(help="Write a timeline for ui.perfetto.dev.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Feed its events to a core of today and compare every command.")
    ] = False,
    fit: Annotated[
        Path | None, typer.Option(help="Fit step times to it and write a cost file for `simulate --cost`.")
    ] = None,
    slo: workload.Objectives = None,
    json_out: workload.Json = None,
) -> None:
    """Summarise a journal; prove with --check that the core still decides as it did."""
    console = Console(stderr=True, highlight=False)
    history = read_journal(journal)
    if history.torn_line is not None:
        console.print(f"[yellow]warning:[/yellow] line {history.torn_line} lacks its end and is left out")
    if check:
        difference = replay_entries(core_from(history.config), history.entries)
        if difference is not None:
            raise UserError(f"{journal} does not replay: {difference}")
        console.print(f"{len(history.entries)} events replay to identical commands")
    if perfetto is not None:
        timeline(history.entries).save(perfetto)
    if fit is not None:
        Fitted.fit(timings(history.entries)).save(fit)
    recorder = Recorder()
    for entry in history.entries:
        recorder.see(entry.now_ns, entry.event, entry.commands)
    summary = Summary.of(recorder.records, Slo.parse(slo) if slo else None)
    report.show(str(journal), summary, recorder.records, history.meta, json_out)
