"""`plait top`: what a running server does, in the terminal."""

import asyncio
from contextlib import aclosing
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live

from plait.client.top import drawn, sheets


def top(
    url: Annotated[str, typer.Option(help="A running server, or `plait dash`.")] = "http://127.0.0.1:8000",
    api_key: Annotated[str, typer.Option(envvar="PLAIT_API_KEY", help="Sent as a bearer token.")] = "",
    once: Annotated[bool, typer.Option("--once", help="Print what there is now and leave.")] = False,
) -> None:
    """Watch instances, requests and decisions of a running server; Ctrl-C ends."""
    asyncio.run(_show(url, api_key, Console(highlight=False), once=once))


async def _show(url: str, api_key: str, console: Console, *, once: bool) -> None:
    async with aclosing(sheets(url, api_key)) as stream:
        if once:
            console.print(drawn(await anext(stream)))
            return
        with Live(console=console, screen=True, auto_refresh=False) as screen:
            async for sheet in stream:
                screen.update(drawn(sheet), refresh=True)
