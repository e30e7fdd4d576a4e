"""One log line and one id a request, and an answer whatever happens."""

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from plait.server.errors import OURS, error_response

log = logging.getLogger("plait.server.access")
_ID = re.compile(r"[\x21-\x7e]{1,128}")
QUIET = frozenset({"/health", "/live", "/ready", "/ping", "/metrics"})


class Access:
    """ASGI middleware: X-Request-Id in and out, the access log, and 500 for what nobody caught.

    `scope["state"]["request_id"]` is the id; whoever finds the client gone sets
    `scope["state"]["gone"]`, which is logged as 499.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        began_s, status = time.perf_counter(), 0

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception:
            log.exception("%s %s failed, id %s", scope["method"], scope["path"], request_id)
            if status:
                raise
            await error_response(500, OURS)(scope, receive, noted)
        finally:
            self._write(scope, 499 if state.get("gone") else status, began_s)

    def _write(self, scope: Scope, status: int, began_s: float) -> None:
        level = logging.DEBUG if scope["path"] in QUIET else logging.INFO
        spent_ms = (time.perf_counter() - began_s) * 1e3
        path = scope["path"][:200]
        log.log(
            level,
            "%s %r %d %.1f ms id %s",
            scope["method"],
            path,
            status,
            spent_ms,
            scope["state"]["request_id"],
        )
