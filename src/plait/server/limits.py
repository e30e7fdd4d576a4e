"""Limits on what a client may send, before anything looks at it."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from plait.server.errors import error_body, error_response
from plait.server.json_response import encode

DISCARD_FACTOR = 16
"""Of a body over the limit this many limits are read and thrown away, so that the client, still
writing, gets to read the 413 instead of a reset connection."""


class SizeLimits:
    """ASGI middleware: reads each body whole, at most `body_limit_bytes` of it, then calls the app."""

    def __init__(self, app: ASGIApp, body_limit_bytes: int, header_limit_bytes: int) -> None:
        self._app = app
        self._body_limit = body_limit_bytes
        self._header_limit = header_limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if _header_bytes(scope) > self._header_limit:
            await error_response(431, headers_too_large(self._header_limit))(scope, receive, send)
            return
        body = await self._read(receive)
        if body is None:
            message = f"the request body is over {self._body_limit} bytes; send a shorter prompt"
            headers = {"connection": "close"}
            await error_response(413, message, headers=headers)(scope, receive, send)
            return
        await self._app(scope, _replay(body, receive), send)

    async def _read(self, receive: Receive) -> bytes | None:
        """The body, or None when it is too long. A client that leaves midway has sent what it has."""
        body, seen, more = bytearray(), 0, True
        while more and seen <= DISCARD_FACTOR * self._body_limit:
            message = await receive()
            chunk = message.get("body", b"")
            more = message.get("more_body", False)
            seen += len(chunk)
            if seen <= self._body_limit:
                body += chunk
        return None if seen > self._body_limit else bytes(body)


def headers_too_large(limit_bytes: int) -> str:
    """What the client is told."""
    return f"the request line and headers are over {limit_bytes} bytes"


def _header_bytes(scope: Scope) -> int:
    line = len(scope["path"]) + len(scope["query_string"])
    return line + sum(len(name) + len(value) for name, value in scope["headers"])


def _replay(body: bytes, receive: Receive) -> Receive:
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return first.pop() if first else await receive()

    return replayed


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol with a bound on headers that are still incomplete, and with a way to
    cut a connection whose client reads nothing (`scope["extensions"]["plait.abort"]`)."""

    header_limit_bytes = 32 << 10
    _head_bytes = 0
    _in_head = True
    _head_ended = False
    """In the chunk that was received last."""

    def data_received(self, data: bytes) -> None:
        started_in_head, self._head_ended = self._in_head, False
        super().data_received(data)
        # Chunks are at most 256 KiB, so memory is bounded by limit + chunk; whole heads are
        # measured exactly by SizeLimits. A chunk may hold a whole request, head and body.
        if started_in_head and self._in_head and not self._head_ended:
            self._head_bytes += len(data)
            if self._head_bytes > self.header_limit_bytes and not self.transport.is_closing():
                self._refuse()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        self.scope["extensions"] = {"plait.abort": {"call": self.transport.abort}}

    def on_headers_complete(self) -> None:
        self._in_head, self._head_ended = False, True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_head, self._head_bytes = True, 0

    def _refuse(self) -> None:
        body = encode(error_body(431, headers_too_large(self.header_limit_bytes)))
        head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(STATUS_LINE[431] + head.encode() + body)
        self.transport.close()


def limited_protocol(limit_bytes: int) -> type[HttpToolsProtocol]:
    """The protocol class with this limit; uvicorn makes one protocol object a connection."""
    return type("LimitedProtocol", (LimitedProtocol,), {"header_limit_bytes": limit_bytes})
