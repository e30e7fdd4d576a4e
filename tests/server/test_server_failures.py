"""The table of HTTP behaviour, its second half: what happens to the service and its connections."""

import asyncio
import json
import logging
import os
import signal
import socket

import aiohttp
import pytest

from plait.server.config import ServerConfig
from plait.server.lifespan import make_server
from tests.server.counting import counting_engine
from tests.server.wire import ASK, is_error, post_bytes, stream_lines

# queue full: 503, or 429 or 529


@pytest.mark.parametrize("overload_status", [503, 429, 529])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_full_queue_is_refused_with_both_headers(open_site, overload_status, stream):
    site = await open_site(engine={"max_queue": 1, "max_rows": 1}, overload_status=overload_status)
    site.engine.fleet.hold_after = 0
    accepted = [asyncio.ensure_future(site.post("/v1/completions", ASK)) for _ in range(2)]
    await site.load(2)
    async with site.client.post(site.url + "/v1/completions", json=ASK | {"stream": stream}) as reply:
        assert reply.status == overload_status
        assert reply.headers["retry-after"] == "1"
        assert reply.headers["x-should-retry"] == "false"
        assert "full" in (await reply.json())["error"]["message"]
    site.engine.fleet.release()
    assert [status for status, _ in await asyncio.gather(*accepted)] == [200, 200]
    await site.idle()


async def test_a_choice_that_finds_the_queue_full_takes_its_siblings_along(open_site):
    site = await open_site(engine={"max_queue": 1, "max_rows": 1})
    status, _ = await site.post("/v1/completions", ASK | {"n": 3})
    assert status == 503
    await site.idle()


# draining or not ready: 503


async def test_a_draining_server_finishes_what_runs_and_refuses_the_rest(site):
    site.engine.fleet.hold_after = 1
    async with site.client.post(site.url + "/v1/completions", json=ASK | {"stream": True}) as running:
        site.server.drain()
        assert (await site.get("/ready"))[0] == 503
        assert (await site.get("/live"))[0] == 200
        assert (await site.get("/health"))[0] == 200
        async with site.client.post(site.url + "/v1/completions", json=ASK) as refused:
            assert refused.status == 503
            assert refused.headers["retry-after"] == "1"
            assert is_error(await refused.json(), 503, "ServiceUnavailableError")
        assert not site.server.should_exit
        site.engine.fleet.release()
        lines = await stream_lines(running)
    assert lines[-1] == b"[DONE]"
    assert json.loads(lines[-2])["choices"][0]["finish_reason"] == "length"
    await asyncio.wait_for(site.server._drain, 10)
    assert site.server.should_exit


async def test_a_drain_has_an_end(open_site):
    site = await open_site(drain_s=0.01)
    site.engine.fleet.hold_after = 1
    async with site.client.post(site.url + "/v1/completions", json=ASK | {"stream": True}) as running:
        site.server.drain()
        with pytest.raises(aiohttp.ClientError):
            await stream_lines(running)
    assert site.engine.stats().finished == {"aborted": 1}


# deadline: 504 before the first byte, else an event and [DONE]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("by_header", [False, True])
async def test_a_deadline_before_the_first_token_is_504(site, stream, by_header):
    site.engine.fleet.hold_after = 0
    headers = {"x-request-timeout": "0.01"} if by_header else {}
    body = ASK | {"stream": stream} | ({} if by_header else {"timeout": 0.01})
    status, answer = await site.post("/v1/completions", body, headers=headers)
    assert status == 504
    assert is_error(answer, 504, "DeadlineExceededError")


async def test_a_deadline_in_a_stream_is_an_event_and_done(site):
    site.engine.fleet.hold_after = 2
    body = ASK | {"stream": True, "timeout": 0.5}
    async with site.client.post(site.url + "/v1/completions", json=body) as reply:
        assert reply.status == 200
        *tokens, error, done = await stream_lines(reply)
    assert len(tokens) == 2
    assert is_error(json.loads(error), 504, "DeadlineExceededError")
    assert done == b"[DONE]"


@pytest.mark.parametrize("value", ["soon", "-1", "nan", "inf", "0"])
async def test_a_malformed_timeout_is_400(site, value):
    status, _ = await site.post("/v1/completions", ASK, headers={"x-request-timeout": value})
    assert status == 400


# engine died mid-stream: an event, then the end


async def test_an_engine_that_dies_in_a_stream_is_an_event_without_done(site):
    site.engine.fleet.hold_after = 1
    async with site.client.post(site.url + "/v1/completions", json=ASK | {"stream": True}) as reply:
        assert reply.status == 200
        site.engine.fleet.die()
        *_, error = await stream_lines(reply)
    assert is_error(json.loads(error), 500, "InternalServerError")
    assert (await site.get("/health"))[0] == 503
    assert (await site.get("/ready"))[0] == 503
    assert (await site.get("/live"))[0] == 200
    assert (await site.post("/v1/completions", ASK))[0] == 503


async def test_an_engine_that_dies_before_the_first_token_is_500(site):
    site.engine.fleet.hold_after = 0
    asking = asyncio.ensure_future(site.post("/v1/completions", ASK))
    await site.load(1)
    site.engine.fleet.die()
    status, answer = await asking
    assert status == 500
    assert is_error(answer, 500, "InternalServerError")


# client disconnect: abort, logged as 499


@pytest.mark.parametrize("stream", [False, True])
async def test_200_clients_that_leave_free_all_kv(open_site, stream, caplog):
    caplog.set_level(logging.INFO, "plait.server.access")
    site = await open_site()
    site.engine.fleet.hold_after = 1
    data = post_bytes(ASK | {"stream": stream})
    writers = []
    for _ in range(200):
        _, writer = await asyncio.open_connection("127.0.0.1", site.port)
        writer.write(data)
        writers.append(writer)
    await site.load(200)
    assert site.engine.stats().kv_used_slots > 0
    for writer in writers:
        writer.transport.abort()
    await site.load(0)
    site.engine.fleet.release()
    await site.idle()
    assert site.engine.stats().finished == {"aborted": 200}
    assert (await site.get("/health"))[0] == 200
    assert len([r for r in caplog.records if " 499 " in r.getMessage()]) == 200


# slow and stalled readers


async def test_a_stalled_reader_is_dropped_and_holds_up_nobody(open_site):
    site = await open_site(engine={"max_len": 10**6}, stall_s=0.3)
    stalled = socket.socket()
    stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    stalled.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(stalled, ("127.0.0.1", site.port))
    long = {"prompt": [1], "max_tokens": 500_000, "ignore_eos": True, "stream": True}
    await loop.sock_sendall(stalled, post_bytes(long))
    await site.load(1)
    assert (await site.post("/v1/completions", ASK))[0] == 200
    await site.idle()
    assert site.engine.stats().finished == {"length": 1, "aborted": 1}
    stalled.close()


async def test_silence_is_filled_with_comments_on_request(open_site):
    site = await open_site(keep_alive_s=0.01)
    site.engine.fleet.hold_after = 1
    async with site.client.post(site.url + "/v1/completions", json=ASK | {"stream": True}) as reply:
        lines = []
        async for line in reply.content:
            lines.append(line)
            if line.startswith(b":"):
                site.engine.fleet.release()
    assert b": keep-alive\n" in lines
    assert lines[-2] == b"data: [DONE]\n"


# request ids


async def test_request_ids_are_echoed_or_made(site):
    for sent, kept in [("abc-1", True), ("a b", False), ("x" * 200, False)]:
        headers = {"x-request-id": sent}
        async with site.client.post(site.url + "/v1/completions", json=ASK, headers=headers) as reply:
            assert (reply.headers["x-request-id"] == sent) == kept
            assert (await reply.json())["id"] == "cmpl-" + reply.headers["x-request-id"]
    _, answer = await site.post("/v1/completions", ASK | {"request_id": "mine"})
    assert answer["id"] == "cmpl-mine"


# what nobody foresaw: 500, without details


async def test_a_bug_is_500_and_keeps_its_secrets(site, monkeypatch):
    monkeypatch.setattr(site.engine, "submit", lambda ask: 1 / 0)
    status, answer = await site.post("/v1/completions", ASK)
    assert status == 500
    assert is_error(answer, 500, "InternalServerError")
    assert "zero" not in answer["error"]["message"]
    assert site.front.in_flight == 0


# leaving


async def test_sigterm_drains_and_ends(tmp_path):
    engine = counting_engine(tmp_path)
    await engine.start()
    listening = asyncio.get_running_loop().create_future()
    server = make_server(engine, ServerConfig(port=0), listening.set_result)
    running = asyncio.ensure_future(server.serve())
    url = await listening
    engine.fleet.hold_after = 1
    async with aiohttp.ClientSession() as client:
        async with client.post(url + "/v1/completions", json=ASK | {"stream": True}) as reply:
            os.kill(os.getpid(), signal.SIGTERM)
            async with asyncio.timeout(30):
                while (await client.get(url + "/ready")).status == 200:
                    pass
            engine.fleet.release()
            assert (await stream_lines(reply))[-1] == b"[DONE]"
        await asyncio.wait_for(running, 30)
        with pytest.raises(aiohttp.ClientConnectionError):
            await client.get(url + "/live")
    assert engine.stats().finished == {"length": 1}
    await engine.close()
