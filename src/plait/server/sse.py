"""Server-sent events: one `data:` line of JSON a chunk, then `data: [DONE]`."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from plait.server.errors import body_of
from plait.server.front import Front, is_final
from plait.server.json_response import encode
from plait.server.reply import Reply
from plait.server.run import Numbered, Run, left

log = logging.getLogger("plait.server")
DONE = b"data: [DONE]\n\n"
COMMENT = b": keep-alive\n\n"


class StalledReader(Exception):
    """The client read nothing for too long."""


class EventStream(Response):
    """Streams a run's pieces. The first one is there already, so what fails before it has a status.

    Afterwards an error is an event of its own: followed by [DONE] where the request ended in order
    (its deadline), by the end of the body where the engine failed. A client that leaves, or reads
    nothing for `stall_s`, has its request aborted.
    """

    media_type = "text/event-stream"

    def __init__(self, front: Front, request: Request, run: Run, first: Numbered, reply: Reply) -> None:
        super().__init__()
        self._front = front
        self._request = request
        self._run = run
        self._first = first
        self._reply = reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writing = asyncio.ensure_future(self._write(send))
        leaving = asyncio.ensure_future(left(self._request))
        try:
            await asyncio.wait({writing, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not writing.done():
                scope["state"]["gone"] = True
                return
            writing.result()
        except StalledReader:
            scope["state"]["gone"] = True
            log.warning("a reader stalled for %g s and was dropped", self._front.config.stall_s)
            abort = scope.get("extensions", {}).get("plait.abort")
            if abort:
                abort["call"]()
        finally:
            self._run.close()
            writing.cancel()
            leaving.cancel()
            await asyncio.gather(writing, leaving, return_exceptions=True)

    async def _write(self, send: Send) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async for data in self._events():
            await self._send(send, {"type": "http.response.body", "body": data, "more_body": True})
        await self._send(send, {"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, message: dict[str, Any]) -> None:
        try:
            async with asyncio.timeout(self._front.config.stall_s):
                await send(message)
        except TimeoutError as error:
            raise StalledReader from error

    async def _events(self) -> AsyncIterator[bytes]:
        try:
            yield _data(self._reply.chunks(*self._first))
            async for item in self._pieces():
                yield COMMENT if item is None else _data(self._reply.chunks(*item))
            yield _data(self._reply.last_chunks()) + DONE
        except Exception as error:
            if not is_final(error):
                log.exception("a stream failed")
            yield _data([body_of(error)]) + (DONE if is_final(error) else b"")

    async def _pieces(self) -> AsyncIterator[Numbered | None]:
        """The run's pieces, and None after each silence of `keep_alive_s`."""
        if self._front.config.keep_alive_s is None:
            async for piece in self._run.pieces:
                yield piece
            return
        pieces = aiter(self._run.pieces)
        while True:
            coming = asyncio.ensure_future(anext(pieces, None))
            try:
                while not (await asyncio.wait({coming}, timeout=self._front.config.keep_alive_s))[0]:
                    yield None
                item = coming.result()
            finally:
                coming.cancel()
            if item is None:
                return
            yield item


def _data(chunks: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(b"data: " + encode(chunk) + b"\n\n" for chunk in chunks)
