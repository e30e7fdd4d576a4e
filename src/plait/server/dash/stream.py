"""`SheetStream`: one viewer's server-sent events."""

import asyncio
import logging
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from plait.server.dash.viewers import Viewer, Viewers
from plait.server.run import left

log = logging.getLogger("plait.server.dash")
QUIET_S = 15.0
"""After so long without a sheet a comment is sent: proxies keep the connection, and a viewer that is gone is
noticed."""
COMMENT = b": still here\n\n"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


class SheetStream(Response):
    """Sends sheets until the viewer leaves or the server does, or nothing is read for `stall_s`."""

    media_type = "text/event-stream"

    def __init__(self, viewers: Viewers, request: Request, stall_s: float) -> None:
        super().__init__()
        self._viewers, self._request, self._stall_s = viewers, request, stall_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._viewers.watching() as viewer:
            writing = asyncio.ensure_future(self._write(send, viewer))
            leaving = asyncio.ensure_future(left(self._request))
            try:
                await asyncio.wait({writing, leaving}, return_when=asyncio.FIRST_COMPLETED)
                if writing.done():
                    writing.result()
            except TimeoutError:
                log.warning("a viewer read nothing for %g s and was dropped", self._stall_s)
                if abort := scope.get("extensions", {}).get("plait.abort"):
                    abort["call"]()
            finally:
                scope["state"]["gone"] = True
                writing.cancel()
                leaving.cancel()
                await asyncio.gather(writing, leaving, return_exceptions=True)

    async def _write(self, send: Send, viewer: Viewer) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        more = True
        while more:
            body, more = await _next(viewer)
            await self._send(send, {"type": "http.response.body", "body": body, "more_body": more})

    async def _send(self, send: Send, message: dict[str, Any]) -> None:
        async with asyncio.timeout(self._stall_s):
            await send(message)


async def _next(viewer: Viewer) -> tuple[bytes, bool]:
    """What is sent next, and whether more follows."""
    try:
        async with asyncio.timeout(QUIET_S):
            sheet = await viewer.queue.get()
    except TimeoutError:
        return COMMENT, True
    return (b"event: sheet\ndata: " + sheet + b"\n\n", True) if sheet else (b"", False)
