"""`Endpoint`: one streamed request to an OpenAI-compatible server, timed from send to end."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from plait.client.prompts import FIRST_ID, WORDS
from plait.client.sse import SseParser
from plait.spec.errors import ServiceError, UserError
from plait.workload.result import COMPLETED, RequestRecord
from plait.workload.trace import TraceRow

Clock = Callable[[], int]
"""Nanoseconds from some start, rising."""


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    """Which server, and how it is asked."""

    url: str
    """Root of the server, with or without /v1."""
    model: str
    chat: bool = False
    """/v1/chat/completions instead of /v1/completions."""
    api_key: str = ""
    timeout_s: float = 600.0
    """For one request, from send to end."""
    ignore_eos: bool = False
    """Ask the server to draw all `max_tokens`; an extension that most servers know."""
    temperature: float = 0.0

    @property
    def base(self) -> str:
        """The URL that routes are appended to."""
        return self.url.rstrip("/").removesuffix("/v1") + "/v1"


@dataclass(slots=True)
class _Reply:
    """What a stream has told so far."""

    token_ns: list[int] = field(default_factory=list)
    finish: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    error: str = ""
    ended: bool = False
    """[DONE] was seen."""

    def take(self, data: str, now_ns: int) -> None:
        """Read the data of one event."""
        if data == "[DONE]":
            self.ended = True
            return
        chunk = json.loads(data)
        if error := chunk.get("error"):
            self.error = str(error.get("message", error) if isinstance(error, dict) else error)
        if usage := chunk.get("usage"):
            self.prompt_tokens = usage["prompt_tokens"]
            self.output_tokens = usage.get("completion_tokens", 0)
        for choice in chunk.get("choices", ()):
            if choice.get("text") or (choice.get("delta") or {}).get("content"):
                self.token_ns.append(now_ns)
            self.finish = choice.get("finish_reason") or self.finish

    def record(self, number: int, sent_ns: int, end_ns: int, prompt_tokens: int) -> RequestRecord:
        """What became of the request."""
        if self.finish is not None and not self.token_ns and self.output_tokens:
            self.token_ns.append(end_ns)  # all of its tokens had no text of their own
        error = self.error
        if not error and (self.finish is None or not self.ended):
            error = "the stream ended before its answer did"
        elif not error and self.finish not in COMPLETED:
            error = f"finish_reason {self.finish}"
        return RequestRecord(
            id=number,
            arrival_ns=sent_ns,
            prompt_tokens=prompt_tokens if self.prompt_tokens is None else self.prompt_tokens,
            output_tokens=len(self.token_ns) if self.output_tokens is None else self.output_tokens,
            token_ns=tuple(self.token_ns),
            end_ns=end_ns,
            outcome="error" if error or self.finish is None else self.finish,
            error=error,
        )


class Endpoint:
    """A server under load. Requests are never retried: a refusal is a result."""

    def __init__(self, config: EndpointConfig, session: aiohttp.ClientSession, clock: Clock) -> None:
        self.config = config
        self._session = session
        self._clock = clock
        self._headers = {"Authorization": f"Bearer {config.api_key}"} if config.api_key else {}

    async def ask(self, number: int, prompt: str | list[int], row: TraceRow) -> RequestRecord:
        """Send one request and read its whole answer. Never raises for what the server does wrong."""
        reply, sent_ns = _Reply(), self._clock()
        try:
            async with asyncio.timeout(self.config.timeout_s):
                await self._stream(self._body(prompt, row.output_tokens), reply)
        except TimeoutError:
            reply.error = f"no end within {self.config.timeout_s:g} s"
        except (aiohttp.ClientError, OSError) as error:
            reply.error = f"{type(error).__name__}: {error}"
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reply.error = f"not an OpenAI stream ({type(error).__name__}: {error})"
        return reply.record(number, sent_ns, self._clock(), row.prompt_tokens)

    async def takes_ids(self) -> bool:
        """Whether prompts may be token ids: asked with a prompt of two of them (a word, for chat).

        Raises:
            ServiceError: the server cannot be reached, or is in no state to answer.
            UserError: it refuses the model, the key or the route.
        """
        chat = self.config.chat
        body = self._body(WORDS[0] if chat else [FIRST_ID, FIRST_ID + 1], 1) | {"stream": False}
        del body["stream_options"]
        status, text = await self._post(body)
        if status in (401, 403, 404) or (chat and status in (400, 422)):
            raise UserError(f"{self._route} answers {status}: {text}; check --url, --model and --api-key")
        if status not in (200, 400, 422):
            raise ServiceError(f"{self._route} answers {status}: {text}")
        return status == 200 and not chat

    async def _post(self, body: dict[str, Any]) -> tuple[int, str]:
        try:
            async with asyncio.timeout(self.config.timeout_s):
                async with self._session.post(self._route, json=body, headers=self._headers) as response:
                    return response.status, _message(await response.read())
        except (aiohttp.ClientError, OSError) as error:
            raise ServiceError(f"cannot reach {self.config.base}: {error or type(error).__name__}") from error

    async def _stream(self, body: dict[str, Any], reply: _Reply) -> None:
        async with self._session.post(self._route, json=body, headers=self._headers) as response:
            if response.status != 200:
                reply.error = f"HTTP {response.status}: {_message(await response.read())}"
                return
            parser = SseParser()
            async for chunk in response.content.iter_any():
                now_ns = self._clock()
                for event in parser.feed(chunk):
                    reply.take(event.data, now_ns)

    @property
    def _route(self) -> str:
        return self.config.base + ("/chat/completions" if self.config.chat else "/completions")

    def _body(self, prompt: str | list[int], max_tokens: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.config.model,
            "max_tokens": max_tokens,
            "temperature": self.config.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.config.ignore_eos:
            body["ignore_eos"] = True
        if self.config.chat:
            return body | {"messages": [{"role": "user", "content": prompt}]}
        return body | {"prompt": prompt}


def _message(body: bytes) -> str:
    """The message of an OpenAI error body, or its start when it is none."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")
