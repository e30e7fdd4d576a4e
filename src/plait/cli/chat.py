"""`plait chat`: talk to a running server."""

import asyncio
import json
import sys
from dataclasses import replace
from typing import Annotated

import typer
from rich.console import Console

from plait.client.chat import ChatConfig, answer, first_model
from plait.spec.errors import UserError


def chat(
    url: Annotated[str, typer.Option(help="A running server.")] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="Model to ask for; the server's own unless told.")] = None,
    api_key: Annotated[str, typer.Option(envvar="PLAIT_API_KEY", help="Sent as a bearer token.")] = "",
    system: Annotated[str | None, typer.Option(help="What the model is told first.")] = None,
    message: Annotated[
        str | None, typer.Option("--message", "-m", help="Ask this one thing, print the answer and leave.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens of an answer.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="0: always the likeliest token.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With -m: print a JSON object.")] = False,
) -> None:
    """Chat with a model. Answers go to stdout as they come; an empty line or Ctrl-D ends."""
    if as_json and message is None:
        raise UserError("--json prints one answer; give the question with -m")
    history = [{"role": "system", "content": system}] if system else []
    config = ChatConfig(url, model, api_key, max_tokens, temperature)
    asyncio.run(_talk(config, history, message, as_json))


async def _talk(
    config: ChatConfig, history: list[dict[str, str]], message: str | None, as_json: bool
) -> None:
    if config.model is None:
        config = replace(config, model=await first_model(config))
    if message is not None:
        await _turn(config, history, message, as_json)
        return
    console = Console(stderr=True, highlight=False)
    console.print(f"{config.model} at {config.url}; an empty line ends")
    while question := await asyncio.to_thread(_read, console):
        await _turn(config, history, question, as_json=False)


async def _turn(config: ChatConfig, history: list[dict[str, str]], question: str, as_json: bool) -> None:
    """One question and its answer, both kept in `history`."""
    history.append({"role": "user", "content": question})
    whole = ""
    async for text in answer(config, history):
        whole += text
        if not as_json:
            sys.stdout.write(text)
            sys.stdout.flush()
    sys.stdout.write((json.dumps({"model": config.model, "answer": whole}) if as_json else "") + "\n")
    history.append({"role": "assistant", "content": whole})


def _read(console: Console) -> str:
    """The next question; empty at the end of input."""
    try:
        return console.input("[bold]>[/bold] ").strip()
    except EOFError:
        return ""
