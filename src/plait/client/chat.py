"""Chatting with an OpenAI-compatible server, as a chat client does: streamed, text only."""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from plait.client.sse import SseParser
from plait.spec.errors import ServiceError, UserError

CONNECT_S = 5.0

Message = Mapping[str, str]
"""`role` and `content`."""


@dataclass(frozen=True, slots=True)
class ChatConfig:
    """Which server, and how it is asked."""

    url: str
    """Root of the server, with or without /v1."""
    model: str | None = None
    """None: the first that the server names."""
    api_key: str = ""
    max_tokens: int | None = None
    """Most tokens of an answer; None: as the server likes."""
    temperature: float | None = None
    """0: always the likeliest token; None: as the server likes."""

    @property
    def base(self) -> str:
        """The URL that routes are appended to."""
        return self.url.rstrip("/").removesuffix("/v1") + "/v1"


async def first_model(config: ChatConfig) -> str:
    """Name of the first model that the server has.

    Raises:
        UserError: it cannot be reached or refuses.
    """
    async with _session(config) as session, session.get(f"{config.base}/models") as reply:
        if reply.status != 200:
            raise UserError(_refusal(await reply.text(), reply.status))
        return str((await reply.json())["data"][0]["id"])


async def answer(config: ChatConfig, messages: Sequence[Message]) -> AsyncIterator[str]:
    """Yields the answer to a conversation as it comes.

    Raises:
        UserError: the server cannot be reached or refuses.
        ServiceError: the answer breaks off.
    """
    wishes = {"max_completion_tokens": config.max_tokens, "temperature": config.temperature}
    body: dict[str, Any] = {"model": config.model, "messages": list(messages), "stream": True}
    body |= {name: value for name, value in wishes.items() if value is not None}
    async with (
        _session(config) as session,
        session.post(f"{config.base}/chat/completions", json=body) as reply,
    ):
        if reply.status != 200:
            raise UserError(_refusal(await reply.text(), reply.status))
        parser = SseParser()
        async for data in reply.content.iter_any():
            for event in parser.feed(data):
                if event.data == "[DONE]":
                    return
                yield _text(event.data)
    raise ServiceError("the server closed the connection before the answer was complete")


@asynccontextmanager
async def _session(config: ChatConfig) -> AsyncIterator[aiohttp.ClientSession]:
    headers = {"authorization": f"Bearer {config.api_key}"} if config.api_key else {}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S)
    try:
        async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
            yield session
    except aiohttp.ClientConnectionError as error:
        raise UserError(f"cannot reach {config.url} ({error}); start one with `plait serve MODEL`") from error


def _text(data: str) -> str:
    chunk = json.loads(data)
    if error := chunk.get("error"):
        raise ServiceError(f"the answer broke off: {error['message']}")
    return "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])


def _refusal(text: str, status: int) -> str:
    """What an error body says, of our server or of another."""
    try:
        return f"{json.loads(text)['error']['message']} (HTTP {status})"
    except (ValueError, KeyError, TypeError):
        return f"the server answered HTTP {status}; is it an OpenAI-compatible server?"
