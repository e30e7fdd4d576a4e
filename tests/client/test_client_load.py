"""The load generator against a real HTTP server: right counts, right outcomes, never stuck, never raising."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise

import pytest
from aiohttp.test_utils import TestServer, unused_port
from hypothesis import given
from hypothesis import strategies as st

from plait.client.endpoint import EndpointConfig
from plait.client.load import LoadConfig, generate
from plait.client.prompts import Prompts
from plait.client.sse import SseEvent, SseParser
from plait.spec.errors import ServiceError, UserError
from plait.workload.profile import Profile
from plait.workload.result import Summary
from plait.workload.trace import TraceRow
from tests.client.peer import Peer

STREAM = (
    ': c\r\n\r\ndata: {"a": "é"}\r\n\r\nevent: error\ndata: x\ndata:y\n\nid: 3\n\ndata: [DONE]\n\n'.encode()
)
EVENTS = [SseEvent('{"a": "é"}'), SseEvent("x\ny", "error"), SseEvent("[DONE]")]


@given(st.lists(st.integers(0, len(STREAM)), max_size=6))
def test_events_do_not_depend_on_how_the_stream_is_cut(cuts):
    edges = [0, *sorted(cuts), len(STREAM)]
    parser = SseParser()
    found = [event for a, b in pairwise(edges) for event in parser.feed(STREAM[a:b])]
    assert found == EVENTS


@asynccontextmanager
async def serving(peer: Peer, **settings):
    async with TestServer(peer.app()) as server:
        yield LoadConfig(EndpointConfig(str(server.make_url("/")), "tiny", **settings))


ROWS = Profile("constant", rate_hz=500, count=6, prompt="5-9", output="3").rows()


async def test_counts_and_times_of_a_healthy_run():
    peer, ended = Peer(), []
    async with serving(peer, ignore_eos=True, api_key="k") as config:
        load = await generate(replace(config, warmup=2), ROWS, ended.append)
    assert load.token_ids
    assert len(peer.seen) == 1 + 2 + len(ROWS)
    assert [record.id for record in load.records] == list(range(len(ROWS)))
    assert sorted(record.id for record in ended) == list(range(len(ROWS)))
    for record, row in zip(load.records, ROWS, strict=True):
        assert (record.prompt_tokens, record.output_tokens) == (row.prompt_tokens, 3)
        assert record.outcome == "length"
        assert len(record.token_ns) == 3
        assert (
            row.arrival_ns <= record.arrival_ns < record.token_ns[0] <= record.token_ns[-1] <= record.end_ns
        )
    sent = peer.seen[-1]
    assert (sent["ignore_eos"], sent["key"], sent["max_tokens"]) == (True, "Bearer k", 3)
    assert sent["stream_options"] == {"include_usage": True}
    assert Summary.of(load.records).completed == len(ROWS)


async def test_text_is_sent_where_ids_are_not_taken():
    peer = Peer(ids=False)
    async with serving(peer) as config:
        load = await generate(config, ROWS)
    assert not load.token_ids
    assert all(record.completed for record in load.records)
    assert load.records[0].prompt_tokens == ROWS[0].prompt_tokens + 5  # the server's count, not ours


async def test_chat_skips_the_chunk_that_only_names_the_role():
    async with serving(Peer(), chat=True) as config:
        load = await generate(config, ROWS)
    assert all(len(record.token_ns) == 3 and record.completed for record in load.records)


async def test_tokens_without_text_still_count():
    async with serving(Peer(fault="textless")) as config:
        load = await generate(config, ROWS)
    assert all(record.completed and record.output_tokens == 3 for record in load.records)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("busy", "HTTP 503: the queue is full"),
        ("error event", "a worker died"),
        ("ends early", "the stream ended before"),
        ("garbage", "not an OpenAI stream"),
        ("dies", "ClientPayloadError|ended before|ClientConnection|Disconnected"),
    ],
)
async def test_what_goes_wrong_is_an_outcome(fault, message):
    async with serving(Peer(fault=fault)) as config:
        load = await generate(config, ROWS)
    for record in load.records:
        assert record.outcome == "error"
        assert any(part in record.error for part in message.split("|")), record.error
        assert not record.completed


async def test_a_request_that_never_ends_is_given_up():
    peer = Peer(release=asyncio.Event())
    async with serving(peer, timeout_s=0.2) as config:
        load = await generate(config, ROWS[:2])
    assert [record.error for record in load.records] == ["no end within 0.2 s"] * 2
    assert all(len(record.token_ns) == 1 for record in load.records)


async def test_a_closed_loop_never_has_more_in_flight_than_it_may():
    peer = Peer()
    rows = Profile("closed", count=20, output="4").rows()
    async with serving(peer) as config:
        load = await generate(replace(config, concurrency=3), rows)
    assert len(load.records) == 20
    assert 1 <= peer.most_inside <= 3


async def test_an_open_loop_does_not_wait_for_answers():
    """The server answers nobody before all requests are inside: waiting for an answer would never end."""
    async with serving(Peer(release=asyncio.Event(), opens_at=len(ROWS))) as config:
        load = await generate(config, ROWS)
    assert all(record.completed for record in load.records)


async def test_a_server_that_is_not_there_or_refuses_is_an_error_at_once():
    for chat in (False, True):
        nowhere = EndpointConfig(f"http://127.0.0.1:{unused_port()}", "tiny", chat)
        with pytest.raises(ServiceError, match="cannot reach"):
            await generate(LoadConfig(nowhere), ROWS)
        async with serving(Peer(fault="wrong model"), chat=chat) as config:
            with pytest.raises(UserError, match="no such model; check"):
                await generate(config, ROWS)


def test_prompts_repeat_and_share_what_their_hashes_share():
    first = TraceRow(0, 40, 1, block_hashes=(5, 6, 7), block_tokens=16)
    second = TraceRow(9, 50, 1, block_hashes=(5, 6, 8, 9), block_tokens=16)
    prompts = Prompts(seed=1)
    a, b = prompts.ids(0, first), prompts.ids(1, second)
    assert (len(a), len(b)) == (40, 50)
    assert a[:32] == b[:32]
    assert a[32:] != b[32:40]
    assert a == prompts.ids(0, first) != Prompts(seed=2).ids(0, first)
    assert all(100 <= token < 1000 for token in a + b)
    assert len(prompts.text(3, TraceRow(0, 12, 1)).split()) == 12


def test_urls_work_with_and_without_their_version():
    for url in ("http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"):
        assert EndpointConfig(url, "m").base == "http://h:1/v1"
