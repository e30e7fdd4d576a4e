"""`plait pull MODEL`: fetch a model and print its folder."""

import json
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from plait.model import hub


def pull(
    model: Annotated[str, typer.Argument(help="A short name (smollm2-135m) or a hub id (OWNER/NAME).")],
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Fetch a model into the cache and print its folder."""
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(model, total=None)
        folder = hub.pull(
            model,
            lambda what, done, total: bar.update(task, description=what, completed=done, total=total or None),
        )
    sys.stdout.write((json.dumps({"model": model, "folder": str(folder)}) if as_json else str(folder)) + "\n")
