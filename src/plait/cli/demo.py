"""`plait demo`: pull the default model, serve it, ask it, measure it, report."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from plait.cli import report
from plait.model.hub import pull


def demo(
    model: Annotated[str, typer.Option(help="An alias, hub id or folder of a chat model.")] = "smollm2-135m",
    instances: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 2,
    out: Annotated[Path, typer.Option(help="Folder for the report and what it is made of.")] = Path(
        "runs/demo"
    ),
) -> None:
    """Serve a real model, ask it questions, put a short load on it and write a report."""
    # Here and not above: plotting is an extra that no other verb needs.
    from plait.client.demo import DemoConfig, run_demo

    console = Console(stderr=True, highlight=False)
    console.print(f"model: {pull(model) if not os.path.isdir(model) else model}")
    config = DemoConfig(model, instances, out)
    with report.progress() as bar:
        task = bar.add_task("load", total=config.requests, visible=False)
        result = asyncio.run(
            run_demo(config, bar.console.print, lambda _: bar.update(task, advance=1, visible=True))
        )
    title = f"{model}, {instances} instances, {config.requests} requests at {config.rate_hz:g}/s"
    report.show(title, result.summary, result.records, {"model": model}, None)
    sys.stdout.write(f"report: {result.report}\n")
