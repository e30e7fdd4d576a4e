"""`plait chat`: talk to a running server."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any

import aiohttp
import typer
from rich.console import Console

from plait.spec.errors import ServiceError, UserError

CONNECT_S = 5.0


@dataclass(frozen=True, slots=True)
class Peer:
    """The server, and how to ask it."""

    url: str
    """Without /v1."""
    key: str | None
    model: str | None
    """None: the first that the server names."""
    max_tokens: int | None
    temperature: float | None


def chat(
    url: Annotated[str, typer.Option(help="A running server.")] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="Model to ask for; the server's own unless told.")] = None,
    api_key: Annotated[str | None, typer.Option(help="Key; PLAIT_API_KEY unless told.")] = None,
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
    key = api_key or os.environ.get("PLAIT_API_KEY")
    peer = Peer(url.rstrip("/").removesuffix("/v1"), key, model, max_tokens, temperature)
    history = [{"role": "system", "content": system}] if system else []
    asyncio.run(_talk(peer, history, message, as_json))


async def _talk(peer: Peer, history: list[dict[str, str]], message: str | None, as_json: bool) -> None:
    headers = {"authorization": f"Bearer {peer.key}"} if peer.key else {}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S)
    console = Console(stderr=True, highlight=False)
    try:
        async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
            model = peer.model or await _first_model(session, peer.url)
            if message is not None:
                await _turn(session, peer, model, history, message, as_json)
                return
            console.print(f"{model} at {peer.url}; an empty line ends")
            while question := await asyncio.to_thread(_read, console):
                await _turn(session, peer, model, history, question, as_json=False)
    except aiohttp.ClientConnectionError as error:
        raise UserError(f"cannot reach {peer.url} ({error}); start one with `plait serve MODEL`") from error


async def _turn(
    session: aiohttp.ClientSession,
    peer: Peer,
    model: str,
    history: list[dict[str, str]],
    question: str,
    as_json: bool,
) -> None:
    """One question and its answer, both kept in `history`."""
    history.append({"role": "user", "content": question})
    body: dict[str, Any] = {"model": model, "messages": history, "stream": True}
    wishes = {"max_completion_tokens": peer.max_tokens, "temperature": peer.temperature}
    body |= {name: value for name, value in wishes.items() if value is not None}
    answer = ""
    async for text in _stream(session, peer.url + "/v1/chat/completions", body):
        answer += text
        if not as_json:
            sys.stdout.write(text)
            sys.stdout.flush()
    sys.stdout.write((json.dumps({"model": model, "answer": answer}) if as_json else "") + "\n")
    history.append({"role": "assistant", "content": answer})


async def _stream(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> AsyncIterator[str]:
    """The answer's text as it comes.

    Raises:
        UserError: the server refused the question.
        ServiceError: the answer broke off.
    """
    async with session.post(url, json=body) as reply:
        if reply.status != 200:
            raise UserError(_words(await reply.text(), reply.status))
        async for line in reply.content:
            data = line.removeprefix(b"data: ").strip()
            if data == b"[DONE]":
                return
            if not line.startswith(b"data: "):
                continue
            chunk = json.loads(data)
            if "error" in chunk:
                raise ServiceError(chunk["error"]["message"])
            for choice in chunk["choices"]:
                yield choice["delta"].get("content") or ""
    raise ServiceError("the server closed the connection before the answer was complete")


async def _first_model(session: aiohttp.ClientSession, url: str) -> str:
    async with session.get(url + "/v1/models") as reply:
        if reply.status != 200:
            raise UserError(_words(await reply.text(), reply.status))
        return str((await reply.json())["data"][0]["id"])


def _words(text: str, status: int) -> str:
    """What an error body says, of our server or of another."""
    try:
        return f"{json.loads(text)['error']['message']} (HTTP {status})"
    except (ValueError, KeyError, TypeError):
        return f"the server answered HTTP {status}; is it an OpenAI-compatible server?"


def _read(console: Console) -> str:
    """The next question; empty at the end of input."""
    try:
        return console.input("[bold]>[/bold] ").strip()
    except EOFError:
        return ""
