"""The table of HTTP behaviour, its first half: what the client did wrong."""

import io
import json

import pytest

from plait.server.auth import Bucket, Keys
from plait.server.config import ServerConfig
from plait.spec.errors import UserError
from tests.server.wire import ASK, is_error, post_bytes, raw

SECRET = "correct horse battery staple " * 40


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
async def test_without_a_key_everything_but_probes_is_401(open_site, key):
    site = await open_site(api_keys=("one", "two"))
    headers = {} if key is None else {"authorization": key}
    for path in ("/v1/models", "/tokenizer_info", "/openapi.json", "/load", "/nowhere"):
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


async def test_a_long_body_in_one_piece_with_its_head_is_no_long_head(site):
    asked = post_bytes(ASK | {"metadata": {"note": "a" * 100_000}})
    head, _, body = asked.partition(b"\r\n\r\n")
    for _ in range(3):
        answer = await raw(site, head + b"\r\nconnection: close\r\n\r\n" + body)
        assert answer.startswith(b"HTTP/1.1 200"), answer[:100]


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
