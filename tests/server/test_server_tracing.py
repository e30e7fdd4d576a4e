"""Traces as a collector gets them, by OTLP over HTTP."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest
from aiohttp import web

from plait.server.config import ServerConfig
from plait.server.front import Front
from plait.spec.errors import UserError
from tests.server.conftest import serving
from tests.server.counting import counting_engine

trace_service = pytest.importorskip(
    "opentelemetry.proto.collector.trace.v1.trace_service_pb2", reason="needs the otel extra"
)

CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
UNSAMPLED = "00-5bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"


class Collector:
    """Takes what is exported, and lets a test wait for it."""

    def __init__(self) -> None:
        self.spans: list = []
        self.paths: list[str] = []
        self.url = ""

    async def take(self, request: web.Request) -> web.Response:
        message = trace_service.ExportTraceServiceRequest.FromString(await request.read())
        self.paths.append(request.path)
        for resource in message.resource_spans:
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return web.Response(body=b"", content_type="application/x-protobuf")

    def roots(self) -> list:
        return [span for span in self.spans if span.name == "llm_request"]

    def below(self, root) -> list:
        return sorted(
            (span for span in self.spans if span.parent_span_id == root.span_id),
            key=lambda span: span.start_time_unix_nano,
        )


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    collector, app = Collector(), web.Application()
    app.router.add_post("/{tail:.*}", collector.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    collector.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
    try:
        yield collector
    finally:
        await runner.cleanup()


def said(span) -> dict:
    """Its attributes."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


async def test_a_request_is_a_span_with_its_phases_below_the_callers(tmp_path):
    async with collecting() as collector:
        config = ServerConfig(otlp_endpoint=collector.url)
        async with serving(counting_engine(tmp_path), config) as site:
            headers = {"traceparent": CALLER, "x-request-id": "mine"}
            body = {"prompt": "hello", "max_tokens": 5, "n": 2, "ignore_eos": True}
            _, answer = await site.post("/v1/completions", body, headers=headers)
            await site.post("/v1/completions", body | {"n": 1})
            await site.post("/v1/completions", body, headers={"traceparent": UNSAMPLED})
        assert set(collector.paths) == {"/v1/traces"}
        roots = collector.roots()
        assert len(roots) == 3, "those of the caller that samples nothing are left out"
        mine = [root for root in roots if root.trace_id.hex() == CALLER.split("-")[1]]
        assert len(mine) == 2
        for root in mine:
            assert root.parent_span_id.hex() == CALLER.split("-")[2]
            about = said(root)
            assert about["gen_ai.request.id"] == "mine"
            assert about["gen_ai.usage.completion_tokens"] == 5
            assert 2 * about["gen_ai.usage.prompt_tokens"] == 2 * answer["usage"]["prompt_tokens"]
            assert about["gen_ai.response.finish_reasons"] == "length"
            assert about["gen_ai.latency.time_to_first_token"] > 0
        [other] = [root for root in roots if root not in mine]
        assert not other.parent_span_id
        for root in roots:
            phases = collector.below(root)
            assert [span.name for span in phases] == ["queue", "prefill", "decode"]
            assert phases[0].start_time_unix_nano == root.start_time_unix_nano
            assert phases[-1].end_time_unix_nano == root.end_time_unix_nano
            for before, after in pairwise(phases):
                assert before.end_time_unix_nano == after.start_time_unix_nano


async def test_a_refusal_is_an_error(tmp_path):
    async with collecting() as collector:
        config = ServerConfig(otlp_endpoint=collector.url + "/own/path", dash=False)
        async with serving(counting_engine(tmp_path, max_queue=0), config) as site:
            status, _ = await site.post("/v1/completions", {"prompt": "x"}, headers={"traceparent": CALLER})
            assert status == 503
        [root] = collector.roots()
        assert collector.paths == ["/own/path"]
        assert root.trace_id.hex() == CALLER.split("-")[1]
        assert (root.status.code, root.status.message) == (2, "queue_full")


async def test_a_collector_that_is_gone_harms_nobody(tmp_path, caplog):
    async with collecting() as collector:
        url = collector.url
    with caplog.at_level(logging.CRITICAL, "opentelemetry"):
        async with serving(counting_engine(tmp_path), ServerConfig(otlp_endpoint=url)) as site:
            assert (await site.post("/v1/completions", {"prompt": "x", "max_tokens": 2}))[0] == 200


@pytest.mark.parametrize("url", ["localhost:4318", "grpc://x:4317", "http://"])
def test_what_is_no_url_is_refused(tmp_path, url):
    with pytest.raises(UserError, match="write http://HOST:4318"):
        Front(counting_engine(tmp_path), ServerConfig(otlp_endpoint=url))


async def test_without_an_endpoint_nothing_is_traced(tmp_path):
    async with serving(counting_engine(tmp_path), ServerConfig(dash=False)) as site:
        before = len(site.engine.driver.observers)
        assert site.front._tracing is None
        assert before == len(site.engine.driver.observers) == 1  # the metrics
