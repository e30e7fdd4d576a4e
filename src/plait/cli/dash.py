"""`plait dash PATH`: the dashboard of what a run left behind, or still writes."""

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from plait.server.config import ServerConfig
from plait.server.dash.app import DashServer
from plait.server.dash.recorded import RecordedSource
from plait.spec.slo import Slo


def dash(
    path: Annotated[Path, typer.Argument(help="A journal, or the folder of a run.")],
    slo: Annotated[str | None, typer.Option(help="Objectives, such as ttft=200ms,tpot=50ms.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port; 0: any free one.")] = 8001,
    api_key: Annotated[
        list[str] | None, typer.Option(help="Accepted key, may be repeated; or set PLAIT_API_KEY.")
    ] = None,
    last: Annotated[
        bool, typer.Option("--last", help="Print the last picture as JSON and end, instead of serving.")
    ] = False,
) -> None:
    """Show a journal of `serve` or `simulate`, or a folder of `align`, `compress` or a stage in a browser."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    source = RecordedSource(path, Slo.parse(slo) if slo else None)
    if last:
        source.read_all()
        sys.stdout.write(msgspec.json.format(source.sheet()).decode() + "\n")
        return
    keys = tuple(api_key or filter(None, os.environ.get("PLAIT_API_KEY", "").split(",")))
    console = Console(stderr=True, highlight=False)

    def ready(url: str) -> None:
        sys.stdout.write(f"{url}\n")
        sys.stdout.flush()
        console.print(f"open {url} in a browser; Ctrl-C ends")

    DashServer(source, ServerConfig(host=host, port=port, api_keys=keys), ready).run()
