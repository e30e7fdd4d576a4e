"""The table of HTTP behaviour: one test or more for each row."""

import asyncio
import io
import json
import logging
import os
import signal
import socket

import aiohttp
import pytest

from plait.server.auth import Bucket, Keys
from plait.server.config import ServerConfig
from plait.server.lifespan import make_server
from plait.spec.errors import UserError
from tests.server.counting import counting_engine

ASK = {"prompt": [10], "max_tokens": 4}
SECRET = "correct horse battery staple " * 40


def is_error(body: dict, status: int, kind: str) -> bool:
    """The one form of an error body."""
    error = body["error"]
    fields = {"message", "type", "param", "code"}
    return (
        set(body) == {"error"} and set(error) == fields and (error["type"], error["code"]) == (kind, status)
    )


def post_bytes(body: dict) -> bytes:
    """A completion request as it goes over the wire."""
    data = json.dumps(body).encode()
    head = f"host: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    return b"POST /v1/completions HTTP/1.1\r\n" + head.encode() + data


async def raw(site, data: bytes) -> bytes:
    """What the server answers to these bytes, until it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    writer.write(data)
    await writer.drain()
    answer = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    return answer


async def stream_lines(reply: aiohttp.ClientResponse) -> list[bytes]:
    return [line[6:].strip() async for line in reply.content if line.startswith(b"data: ")]


# bad JSON / schema / context too long: 400


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[1]",
        b'"text"',
        b"null",
        b'{"prompt": "\xff\xfe"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": [1], "temperature": NaN}',
        b'{"prompt": [1], "temperature": 1e999}',
        b'{"prompt": [1], "extra": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"prompt": [99999999999999999999999999]}',
    ],
)
async def test_bad_json_is_400(site, data):
    headers = {"content-type": "application/json"}
    async with site.client.post(site.url + "/v1/completions", data=data, headers=headers) as reply:
        assert reply.status == 400
        assert is_error(await reply.json(), 400, "BadRequestError")


async def test_other_content_types_are_400(site):
    headers = {"content-type": "text/plain"}
    data = json.dumps(ASK)
    async with site.client.post(site.url + "/v1/completions", data=data, headers=headers) as reply:
        assert reply.status == 400
        assert "application/json" in (await reply.json())["error"]["message"]


async def test_a_prompt_over_the_context_is_400_with_both_lengths(site):
    status, body = await site.post("/v1/completions", {"prompt": [1] * 513})
    assert status == 400
    assert is_error(body, 400, "BadRequestError")
    assert "513" in body["error"]["message"]
    assert "512" in body["error"]["message"]
    status, body = await site.post("/v1/completions", {"prompt": [1] * 500, "max_tokens": 13})
    assert status == 400
    assert "at most 12" in body["error"]["message"]


@pytest.mark.parametrize(
    "body", [{"prompt": SECRET, "n": 0}, {"prompt": {"x": SECRET}}, {"prompt": [SECRET, 1]}]
)
async def test_an_error_never_shows_the_prompt(site, body):
    status, answer = await site.post("/v1/completions", {"prompt": SECRET} | body)
    assert status == 400
    assert "battery" not in json.dumps(answer)


# no or bad key: 401


@pytest.mark.parametrize("key", [None, "Bearer no", "Bearer ", "Basic one", "one"])
@pytest.mark.parametrize("path", ["/v1/models", "/tokenizer_info", "/openapi.json", "/load", "/nowhere"])
async def test_without_a_key_everything_but_probes_is_401(open_site, key, path):
    site = await open_site(api_keys=("one", "two"))
    headers = {} if key is None else {"authorization": key}
    status, text = await site.get(path, headers=headers)
    assert status == 401
    assert is_error(json.loads(text), 401, "AuthenticationError")


async def test_each_key_opens_and_probes_are_open(open_site):
    site = await open_site(api_keys=("one", "two"))
    for key in ("one", "two"):
        assert (await site.get("/v1/models", headers={"authorization": f"Bearer {key}"}))[0] == 200
    for path in ("/health", "/live", "/ready", "/ping", "/metrics", "/version"):
        assert (await site.get(path))[0] == 200


def test_keys_are_compared_whole():
    keys = Keys(("one", "two"))
    assert keys.find("Bearer two") == 1
    assert keys.find("bearer one") == 0
    assert keys.find("Bearer on") is None
    assert Keys(()).find(None) == 0


def test_an_empty_key_is_refused():
    with pytest.raises(UserError, match="empty"):
        ServerConfig(api_keys=("",))


async def test_listening_to_the_world_without_a_key_is_warned_about(open_site, caplog):
    await open_site(host="0.0.0.0")
    assert "without an API key" in caplog.text


# unknown model or route: 404; wrong method: 405


async def test_unknown_model_and_route_are_404(site):
    for path in ("/v1/completions", "/v1/chat/completions", "/tokenize"):
        body = ASK | {"messages": [{"role": "user", "content": "x"}], "model": "huge"}
        body |= {"prompt": "x"} if path == "/tokenize" else {}
        body = {k: v for k, v in body.items() if path != "/tokenize" or k != "messages"}
        status, answer = await site.post(path, body)
        assert status == 404
        assert is_error(answer, 404, "NotFoundError")
    for path in ("/v1/models/huge", "/nowhere"):
        status, text = await site.get(path)
        assert status == 404
        assert is_error(json.loads(text), 404, "NotFoundError")


async def test_a_wrong_method_is_405(site):
    status, text = await site.get("/v1/completions")
    assert status == 405
    assert is_error(json.loads(text), 405, "MethodNotAllowedError")


async def test_the_root_is_an_alias_of_the_model(site):
    root = site.engine.card.root
    assert (await site.post("/v1/completions", ASK | {"model": root}))[0] == 200
    assert json.loads((await site.get(f"/v1/models/{root}"))[1])["id"] == "tiny"


# body or headers too big: 413 and 431


async def test_a_10_mb_prompt_is_413(site):
    data = io.BytesIO(json.dumps({"prompt": "a" * 10_000_000}).encode())
    headers = {"content-type": "application/json"}
    async with site.client.post(site.url + "/v1/completions", data=data, headers=headers) as reply:
        assert reply.status == 413
        assert is_error(await reply.json(), 413, "RequestTooLargeError")
    assert (await site.post("/v1/completions", ASK))[0] == 200


async def test_a_long_body_without_a_length_is_413(open_site):
    site = await open_site(body_limit_bytes=1000)

    async def chunks():
        for _ in range(20):
            yield b" " * 100

    async with site.client.post(site.url + "/v1/completions", data=chunks()) as reply:
        assert reply.status == 413


async def test_long_headers_are_431(site):
    head = b"GET /health HTTP/1.1\r\nhost: x\r\nx-long: " + b"a" * 40_000 + b"\r\n\r\n"
    assert (await raw(site, head)).startswith(b"HTTP/1.1 431")


async def test_headers_without_an_end_are_431(site):
    answer = await raw(site, b"GET /health HTTP/1.1\r\nx-long: " + b"a" * 100_000)
    assert answer.startswith(b"HTTP/1.1 431")
    assert is_error(json.loads(answer.partition(b"\r\n\r\n")[2]), 431, "RequestHeaderFieldsTooLargeError")


# per-key rate limit: 429


async def test_a_key_over_its_rate_is_429(open_site):
    site = await open_site(api_keys=("one", "two"), rate_limit_per_minute=2)
    one, two = ({"authorization": f"Bearer {key}"} for key in ("one", "two"))
    statuses = [(await site.get("/v1/models", headers=one))[0] for _ in range(3)]
    assert statuses == [200, 200, 429]
    async with site.client.get(site.url + "/v1/models", headers=one) as reply:
        assert is_error(await reply.json(), 429, "RateLimitError")
        assert 1 <= int(reply.headers["retry-after"]) <= 30
    assert (await site.get("/v1/models", headers=two))[0] == 200
    assert (await site.get("/health", headers=one))[0] == 200


def test_a_bucket_fills_again():
    bucket = Bucket(per_minute=2, now_s=0.0)
    assert [bucket.wait_s(0.0) for _ in range(3)] == [0.0, 0.0, 30.0]
    assert bucket.wait_s(29.0) == pytest.approx(1.0)
    assert bucket.wait_s(30.0) == 0.0


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
