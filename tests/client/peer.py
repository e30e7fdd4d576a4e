"""A small server that speaks OpenAI's streams and misbehaves when asked to: the load generator's peer."""

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class Peer:
    """Answers each request by its `max_tokens`; `fault` chooses what goes wrong."""

    fault: str = ""
    ids: bool = True
    """Takes prompts of token ids."""
    seen: list[dict[str, Any]] = field(default_factory=list)
    inside: int = 0
    most_inside: int = 0
    release: asyncio.Event | None = None
    """Answers wait for it after their first token."""
    opens_at: int = 0
    """Requests inside that set `release`; 0: nothing does."""

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/v1/completions", self.answer)
        app.router.add_post("/v1/chat/completions", self.answer)
        return app

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.seen.append(body | {"key": request.headers.get("Authorization", "")})
        prompt = body.get("prompt")
        if isinstance(prompt, list) and not self.ids:
            return web.json_response({"error": {"message": "prompt must be a string"}}, status=400)
        if self.fault == "wrong model":
            return web.json_response({"error": {"message": "no such model"}}, status=404)
        if not body["stream"]:
            return web.json_response({"choices": [{"text": "x", "finish_reason": "length"}]})
        if self.fault == "busy":
            return web.json_response({"error": {"message": "the queue is full"}}, status=503)
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        if self.release is not None and self.inside == self.opens_at:
            self.release.set()
        try:
            return await self._stream(request, body)
        finally:
            self.inside -= 1

    async def _stream(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b": hello\n\n")
        chat = request.path.endswith("chat/completions")
        if chat:
            await self._chunk(response, {"delta": {"role": "assistant", "content": ""}})
        for number in range(body["max_tokens"]):
            text = "" if self.fault == "textless" else f"t{number} \u00e9"
            await self._chunk(response, {"delta": {"content": text}} if chat else {"text": text})
            if self.release is not None:
                await self.release.wait()
            if self.fault == "dies" and number == 1:
                assert request.transport is not None
                request.transport.close()
                return response
            if self.fault == "error event" and number == 1:
                await response.write(b'data: {"error": {"message": "a worker died"}}\n\n')
                return response
            if self.fault == "ends early" and number == 1:
                return response
            if self.fault == "garbage" and number == 1:
                await response.write(b"data: {nonsense\n\n")
                return response
        last = {"finish_reason": "length"}
        await self._chunk(response, last | ({"delta": {}} if chat else {"text": ""}))
        usage = {"prompt_tokens": self._length(body), "completion_tokens": body["max_tokens"]}
        await self._write(response, {"choices": [], "usage": usage})
        await response.write(b"data: [DONE]\n\n")
        return response

    def _length(self, body: dict[str, Any]) -> int:
        prompt = body["prompt"] if "prompt" in body else body["messages"][0]["content"]
        return len(prompt) if isinstance(prompt, list) else len(prompt.split()) + 5

    async def _chunk(self, response: web.StreamResponse, choice: dict[str, Any]) -> None:
        await self._write(
            response, {"choices": [{"index": 0, "finish_reason": None, **choice}], "usage": None}
        )

    async def _write(self, response: web.StreamResponse, value: dict[str, Any]) -> None:
        await response.write(b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\r\n\r\n")
