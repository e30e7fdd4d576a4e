"""Requests as OpenTelemetry traces: a span for each, with one for each phase that the journal tells of.

llm_request            from arrival to end; child of the caller's span, where traceparent names one
  |- queue, prefill, wait, move, decode, ...
"""

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from plait import __version__
from plait.server.dash.live import board_of
from plait.spec.command import Command
from plait.spec.errors import UserError
from plait.spec.event import Arrived, Event
from plait.spec.request import EndReason
from plait.workload.board.waterfall import Course

if TYPE_CHECKING:
    from plait.runtime.engine import Engine

log = logging.getLogger("plait.server.tracing")
PATIENCE_S = 5
"""An export is given up after so long."""
FINE = frozenset({EndReason.STOP, EndReason.LENGTH, EndReason.ABORTED})


class Tracing:
    """Sees every call of the engine's core, and sends what ended to a collector. Unsampled callers are left
    out."""

    def __init__(self, engine: "Engine", endpoint: str) -> None:
        """`endpoint`: URL of a collector that speaks OTLP over HTTP.

        Raises:
            UserError: it is no such URL.
        """
        resource = Resource.create({"service.name": "plait", "service.version": __version__})
        self._provider = TracerProvider(resource=resource)
        exporter = OTLPSpanExporter(endpoint=_traces(endpoint), timeout=PATIENCE_S)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("plait", __version__)
        self._model = engine.card.name
        # The core counts from its own start.
        self._zero_ns = time.time_ns() - engine.driver.now_ns()
        self._caller, self._id = Context(), ""
        self._callers: dict[int, tuple[Context, str]] = {}
        """Of requests that go on."""
        self._board = board_of(engine, None)
        self._board.ended = self._export
        self._lost = False
        engine.watch(self._see)

    @contextlib.contextmanager
    def calling(self, headers: Mapping[str, str], id: str) -> Iterator[None]:
        """Requests that arrive meanwhile are this caller's, who named a trace in its headers or did not.
        `id`: of its HTTP request."""
        self._caller, self._id = TraceContextTextMapPropagator().extract(headers), id
        try:
            yield
        finally:
            self._caller, self._id = Context(), ""

    def close(self) -> None:
        """Send what is left; blocks for a few seconds at most."""
        self._provider.force_flush(PATIENCE_S * 1000)
        self._provider.shutdown()

    def _see(self, now_ns: int, event: Event, commands: Sequence[Command]) -> None:
        """A fault here is ours, and the engine goes on without us."""
        if self._lost:
            return
        try:
            if isinstance(event, Arrived):
                self._callers[event.request.id] = self._caller, self._id
            self._board.see(now_ns, event, commands)
        except Exception:
            self._lost = True
            log.exception("traces cannot follow %r and end here", event)

    def _export(self, course: Course) -> None:
        request = course.request
        parent, id = self._callers.pop(request.id, (Context(), ""))
        attributes: dict[str, str | int | float] = {
            "gen_ai.request.id": id or str(request.id),
            "gen_ai.response.model": request.adapter or self._model,
            "gen_ai.request.max_tokens": request.max_tokens,
            "gen_ai.usage.prompt_tokens": request.prompt_tokens,
            "gen_ai.usage.completion_tokens": course.tokens,
            "gen_ai.response.finish_reasons": course.outcome,
            "plait.request": request.id,
            "plait.priority": request.priority,
        }
        if course.first_ns >= 0:
            attributes["gen_ai.latency.time_to_first_token"] = course.ttft_ns / 1e9
        span = self._tracer.start_span(
            "llm_request", parent, SpanKind.SERVER, attributes, start_time=self._zero_ns + course.arrived_ns
        )
        if course.outcome not in FINE:
            span.set_status(Status(StatusCode.ERROR, course.outcome))
        inside = set_span_in_context(span, parent)
        ends_ns = [at_ns for at_ns, _ in course.phases[1:]] + [course.end_ns]
        for (begin_ns, phase), end_ns in zip(course.phases, ends_ns, strict=True):
            child = self._tracer.start_span(phase, inside, start_time=self._zero_ns + begin_ns)
            child.end(self._zero_ns + end_ns)
        span.end(self._zero_ns + course.end_ns)


def _traces(endpoint: str) -> str:
    """The URL that spans are sent to: a collector's own path for them, unless one is named."""
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UserError(f"{endpoint!r} is no URL of a collector: write http://HOST:4318", "otlp_endpoint")
    return endpoint if parts.path.strip("/") else endpoint.rstrip("/") + "/v1/traces"
