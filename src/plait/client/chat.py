"""Chatting with an OpenAI-compatible server, as a chat client does: streamed, text only."""

import json
from collections.abc import AsyncIterator, Mapping, Sequence

import aiohttp

from plait.client.endpoint import EndpointConfig
from plait.client.sse import SseParser
from plait.spec.errors import ServiceError

Message = Mapping[str, str]
"""`role` and `content`."""


async def chat(
    config: EndpointConfig, messages: Sequence[Message], max_tokens: int | None = None
) -> AsyncIterator[str]:
    """Yields the answer as it comes.

    Raises:
        ServiceError: the server cannot be reached, refuses, or breaks off; the message says which.
    """
    body = {
        "model": config.model,
        "messages": list(messages),
        "temperature": config.temperature,
        "stream": True,
    }
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    headers = {"Authorization": f"Bearer {config.api_key}"} if config.api_key else {}
    timeout = aiohttp.ClientTimeout(total=config.timeout_s)
    url = f"{config.base}/chat/completions"
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.post(url, json=body, headers=headers) as response,
        ):
            if response.status != 200:
                raise ServiceError(f"{url} answers {response.status}: {_message(await response.text())}")
            parser = SseParser()
            async for data in response.content.iter_any():
                for event in parser.feed(data):
                    if event.data != "[DONE]":
                        yield _text(event.data)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise ServiceError(f"cannot chat with {config.base}: {error or type(error).__name__}") from error


def _text(data: str) -> str:
    chunk = json.loads(data)
    if error := chunk.get("error"):
        raise ServiceError(f"the answer broke off: {error.get('message', error)}")
    return "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])


def _message(body: str) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body[:200]
