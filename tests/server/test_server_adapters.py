"""Adapters over HTTP: named as models, loaded and unloaded with a key of their own, from folders named."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from plait.model.lora_folder import CONFIG, WEIGHTS
from plait.server.adapters import found
from plait.server.app import create_app
from plait.server.auth import LOAD, UNLOAD
from plait.server.config import ServerConfig
from plait.spec.errors import NotFound, UserError
from tests.server.counting import counting_engine
from tests.server.wire import ASK, is_error

ADMIN = "an admin key of the operator"
HEADERS = {"authorization": f"Bearer {ADMIN}"}


def write(folder: Path, **settings: object) -> Path:
    """An adapter as far as a driver looks at it."""
    folder.mkdir(parents=True)
    usual = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none"}
    (folder / CONFIG).write_text(json.dumps({**usual, **settings}))
    (folder / WEIGHTS).write_bytes(b"weights")
    return folder


@pytest.fixture
async def site(open_site, tmp_path):
    """A server with one adapter to load, and one that lies elsewhere."""
    write(tmp_path / "loras" / "polite")
    write(tmp_path / "elsewhere")
    return await open_site(admin_key=ADMIN, api_keys=("a caller",), lora_dirs=(tmp_path / "loras",))


async def load(site, name: str, path: str, headers: dict | None = None) -> tuple[int, dict]:
    return await site.post(LOAD, {"lora_name": name, "lora_path": path}, headers=headers or HEADERS)


async def ask(site, model: str, **more: object) -> tuple[int, dict]:
    caller = {"authorization": "Bearer a caller"}
    return await site.post("/v1/completions", {**ASK, "model": model, **more}, headers=caller)


async def test_an_adapter_answers_to_its_name(site):
    before = await ask(site, "tiny", return_token_ids=True)
    assert (await ask(site, "polite"))[0] == 404
    assert await load(site, "polite", "polite") == (200, {"status": "loaded", "lora_name": "polite"})
    status, answer = await ask(site, "polite", return_token_ids=True)
    assert (status, answer["model"]) == (200, "polite")
    drawn, plain = (said["choices"][0]["token_ids"] for said in (answer, before[1]))
    assert [b - a for a, b in pairwise(drawn)] == [2] * (len(drawn) - 1)
    assert [b - a for a, b in pairwise(plain)] == [1] * (len(plain) - 1)
    assert (await ask(site, "tiny", return_token_ids=True))[1]["choices"] == before[1]["choices"]


async def test_chats_and_streams_name_it_too(site):
    await load(site, "polite", "polite")
    body = {"model": "polite", "max_tokens": 3, "messages": [{"role": "user", "content": "hello"}]}
    caller = {"authorization": "Bearer a caller"}
    status, answer = await site.post("/v1/chat/completions", body, headers=caller)
    assert (status, answer["model"]) == (200, "polite")
    async with site.client.post(
        site.url + "/v1/chat/completions", json=body | {"stream": True}, headers=caller
    ) as reply:
        lines = [line for line in (await reply.text()).splitlines() if line.startswith("data: {")]
    assert {json.loads(line.removeprefix("data: "))["model"] for line in lines} == {"polite"}
    assert (await site.post("/tokenize", {"prompt": "x", "model": "polite"}, headers=caller))[0] == 200


async def test_models_lists_it_below_its_base(site, tmp_path):
    await load(site, "polite", str(tmp_path / "loras" / "polite"))
    caller = {"authorization": "Bearer a caller"}
    base, card = json.loads((await site.get("/v1/models", headers=caller))[1])["data"]
    assert (base["id"], base["parent"]) == ("tiny", None)
    assert (card["id"], card["parent"], card["root"]) == (
        "polite",
        "tiny",
        str(tmp_path / "loras" / "polite"),
    )
    assert json.loads((await site.get("/v1/models/polite", headers=caller))[1]) == card
    assert (await site.get("/v1/models/rude", headers=caller))[0] == 404


async def test_unloading_takes_the_name_at_once_and_the_rest_with_its_last_request(site):
    await load(site, "polite", "polite")
    site.engine.fleet.hold_after = 1
    caller = {"authorization": "Bearer a caller"}
    body = {**ASK, "model": "polite", "max_tokens": 5, "stream": True}
    async with site.client.post(site.url + "/v1/completions", json=body, headers=caller) as reply:
        await reply.content.readline()
        text = (await site.get("/metrics"))[1]
        assert 'plait:adapter_running{adapter="polite",engine="0",model_name="tiny"} 1.0' in text
        assert 'plait:adapter_requests_total{adapter="polite",engine="0",model_name="tiny"} 1.0' in text
        assert 'plait:adapters_loaded{engine="0",model_name="tiny"} 1.0' in text
        gone = {"status": "unloaded", "lora_name": "polite"}
        assert await site.post(UNLOAD, {"lora_name": "polite"}, headers=HEADERS) == (200, gone)
        assert (await ask(site, "polite"))[0] == 404
        assert list(site.engine.fleet.adapters) == [1]
        assert (await load(site, "polite", "polite"))[0] == 200
        assert list(site.engine.fleet.adapters) == [1, 2]
        site.engine.fleet.release()
        assert "[DONE]" in await reply.text()
    assert list(site.engine.fleet.adapters) == [2]
    assert (await site.post(UNLOAD, {"lora_name": "rude"}, headers=HEADERS))[0] == 404


@pytest.mark.parametrize("key", ["a caller", "", "an admin key of the operato", f"{ADMIN}x", None])
async def test_no_other_key_opens_the_routes(site, key):
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    for path, body in ((LOAD, {"lora_name": "x", "lora_path": "polite"}), (UNLOAD, {"lora_name": "x"})):
        status, answer = await site.post(path, body, headers=headers)
        assert is_error(answer, 401, "AuthenticationError")
        assert status == 401
    assert not site.engine.adapters.cards


async def test_the_admin_key_opens_nothing_else(site):
    assert (await site.post("/v1/completions", ASK, headers=HEADERS))[0] == 401
    assert (await site.get("/v1/models", headers=HEADERS))[0] == 401


async def test_without_an_admin_key_there_are_no_such_routes(open_site):
    site = await open_site()
    for path in (LOAD, UNLOAD):
        assert (await site.post(path, {"lora_name": "x", "lora_path": "y"}, headers=HEADERS))[0] == 404


def test_with_one_there_are_these_two_and_no_more(tmp_path):
    engine = counting_engine(tmp_path)
    paths = [set(create_app(engine, ServerConfig(admin_key=key)).openapi()["paths"]) for key in (None, ADMIN)]
    assert paths[1] - paths[0] == {LOAD, UNLOAD}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"admin_key": ""}, "under 16"),
        ({"admin_key": "short"}, "under 16"),
        ({"admin_key": ADMIN, "api_keys": ("x", ADMIN)}, "one of the API keys"),
        ({"lora_dirs": (Path(),)}, "set one"),
    ],
)
def test_keys_that_protect_nothing_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        ServerConfig(**settings)


def test_nothing_outside_the_folders_is_found(tmp_path):
    root = tmp_path / "loras"
    inside, outside = write(root / "a" / "b"), write(tmp_path / "outside")
    (root / "link").symlink_to(outside)
    (root / "good").symlink_to(inside)
    half = write(root / "half")
    (half / WEIGHTS).unlink()
    (half / WEIGHTS).symlink_to(outside / WEIGHTS)
    (root / "circle").symlink_to(root / "circle")
    assert (
        found("a/b", (tmp_path / "none", root))
        == found(str(inside), (root,))
        == found("good", (root,))
        == inside
    )
    for path in (
        "..",
        "../outside",
        str(outside),
        "link",
        "half",
        "circle",
        "a",
        "nothing",
        "a\0b",
        "a/../../outside",
    ):
        with pytest.raises(NotFound, match="names no folder") as error:
            found(path, (root,))
        assert str(tmp_path) not in str(error.value)
    with pytest.raises(UserError, match="--lora-dir"):
        found("a/b", ())


async def test_what_is_wrong_with_a_request_is_said(site, tmp_path):
    write(tmp_path / "loras" / "dora", use_dora=True)
    for name, path, status, words in (
        ("x", "../elsewhere", 404, "names no folder"),
        ("x", "dora", 400, "DoRA"),
        ("tiny", "polite", 400, "own name"),
        ("a b", "polite", 400, "letters"),
        ("x" * 129, "polite", 400, "lora_name"),
    ):
        got, answer = await load(site, name, path)
        assert (got, words in answer["error"]["message"]) == (status, True), answer
    assert (await load(site, "polite", "polite"))[0] == 200
    status, answer = await load(site, "polite", "polite")
    assert (status, "loaded already" in answer["error"]["message"]) == (400, True)
    body = {"lora_name": "y", "lora_path": "polite", "load_inplace": True}
    assert (await site.post(LOAD, body, headers=HEADERS))[0] == 400
