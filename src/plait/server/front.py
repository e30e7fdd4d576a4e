"""What all routes share: the engine, the settings, the metrics, and the door that drains."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

from starlette.requests import Request

from plait.server.config import ServerConfig
from plait.server.dash.live import LiveSource
from plait.server.dash.viewers import Viewers
from plait.server.errors import Refusal
from plait.server.metrics import Metrics
from plait.spec.errors import NotFound, Overloaded, PlaitError, UserError
from plait.text.tool_format import format_named

if TYPE_CHECKING:
    from plait.runtime.engine import Engine
    from plait.server.tracing import Tracing

log = logging.getLogger("plait.server")
KNOWN_EXTRAS = 1000
"""Names of unknown fields that are remembered as logged."""


class Front:
    """One server's state; lives as long as the app."""

    def __init__(self, engine: "Engine", config: ServerConfig) -> None:
        self.engine = engine
        self.config = config
        self.metrics = Metrics(engine)
        self.tool_format = format_named(config.tool_parser)
        self.viewers = Viewers(LiveSource(engine, config.slo)) if config.dash else None
        """Of the dashboard; None: there is none."""
        self._tracing = _tracing(engine, config.otlp_endpoint) if config.otlp_endpoint else None
        self.draining = False
        self.in_flight = 0
        """Requests for tokens that are being answered."""
        self.idle = asyncio.Event()
        """Set while there are none."""
        self.idle.set()
        self._logged: set[str] = set()

    def calling(self, request: Request) -> AbstractContextManager[None]:
        """What is submitted meanwhile belongs to this HTTP request."""
        if self._tracing is None:
            return nullcontext()
        return self._tracing.calling(request.headers, request.scope["state"]["request_id"])

    async def close(self) -> None:
        """No more requests come, and none is left."""
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)

    def enter(self) -> None:
        """A request for tokens begins."""
        self.in_flight += 1
        self.idle.clear()

    def leave(self) -> None:
        """It is answered, or over."""
        self.in_flight -= 1
        if not self.in_flight:
            self.idle.set()

    def unready(self) -> str | None:
        """Why new work is refused; None: it is not."""
        health = self.engine.health()
        if self.draining or health.draining:
            return "the server drains and takes no new requests; ask another replica"
        if not health.ready:
            return f"the engine is not ready: {health.reason}"
        return None

    def check_ready(self) -> None:
        """Raises 503 when new work is refused."""
        reason = self.unready()
        if reason is not None:
            raise Refusal(503, reason, self._come_back())

    def adapter_of(self, model: str | None) -> str:
        """The adapter that a request's model names; empty for the served model, which answers to its name and
        its root. No name means it too.

        Raises:
            NotFound: another model was asked for.
        """
        card, adapters = self.engine.card, self.engine.adapters.cards
        if model is None or model in {card.name, card.root}:
            return ""
        if model not in adapters:
            names = ", ".join(repr(name) for name in (card.name, *adapters))
            raise NotFound(f"there is no model {model[:100]!r}; this server has {names[:1000]}", "model")
        return model

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Errors of the engine as clients see them: a full queue becomes the configured status, with
        headers that keep client libraries from asking again at once."""
        try:
            yield
        except Overloaded as error:
            if self.unready() is not None:
                raise Refusal(503, str(error), self._come_back()) from error
            headers = self._come_back() | {"x-should-retry": "false"}
            raise Refusal(self.config.overload_status, str(error), headers) from error

    def log_unknown(self, fields: list[str]) -> None:
        """Unknown fields are tolerated, and logged once."""
        for name in fields:
            if name not in self._logged and len(self._logged) < KNOWN_EXTRAS:
                self._logged.add(name)
                log.warning("requests carry the field %r, which is unknown and has no effect", name[:100])

    def _come_back(self) -> dict[str, str]:
        return {"retry-after": str(self.config.retry_after_s)}


def _tracing(engine: "Engine", endpoint: str) -> "Tracing":
    try:
        from plait.server.tracing import Tracing
    except ModuleNotFoundError as error:
        raise UserError(
            f"traces need {error.name}: pip install 'plait[otel]', or leave out --otlp-endpoint",
            "otlp_endpoint",
        ) from error
    return Tracing(engine, endpoint)


def is_final(error: Exception) -> bool:
    """After this error a stream ends in order, with [DONE]; after others it is cut."""
    return isinstance(error, PlaitError) and error.status != 500
