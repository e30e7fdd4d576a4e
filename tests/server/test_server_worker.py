"""Bad input in front of a real model: worker process, tiny Llama, and KV use at 0 afterwards."""

import asyncio
import io
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from plait.runtime.setup import ServeConfig, open_engine
from plait.server.config import ServerConfig
from plait.serving.admission import AdmissionConfig
from plait.serving.manager import ManagerConfig
from tests.server.conftest import Site, serving
from tests.server.test_server_http import post_bytes

pytestmark = pytest.mark.asyncio(loop_scope="module")
ASK = {"prompt": [10, 11, 12], "max_tokens": 8, "temperature": 0}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    tiny = pytest.importorskip("tests.tiny", reason="needs torch and transformers")
    folder: Path = tiny.tiny_folder(tmp_path_factory.mktemp("models"), max_position_embeddings=4096)
    manager = ManagerConfig(model="tiny", admission=AdmissionConfig(max_queue=300))
    engine = open_engine(ServeConfig(str(folder), name="tiny", kv_tokens=1 << 15, manager=manager))
    async with serving(engine, ServerConfig(stall_s=0.5)) as site:
        yield site


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def unharmed(site: Site) -> AsyncIterator[None]:
    """Whatever came in: afterwards no KV is held, and the same question gets the same answer."""
    before = await site.post("/v1/completions", ASK)
    assert before[0] == 200
    yield
    await site.idle()
    after = await site.post("/v1/completions", ASK)
    assert after[1]["choices"] == before[1]["choices"]
    await site.idle()
    assert (await site.get("/ready"))[0] == 200


async def test_a_10_mb_prompt(site):
    data = io.BytesIO(json.dumps({"prompt": "a" * 10_000_000}).encode())
    headers = {"content-type": "application/json"}
    async with site.client.post(site.url + "/v1/completions", data=data, headers=headers) as reply:
        assert reply.status == 413


async def test_a_prompt_over_the_context(site):
    status, answer = await site.post("/v1/completions", {"prompt": "a" * 5000})
    assert status == 400
    assert "5000 tokens" in answer["error"]["message"]
    assert "4096" in answer["error"]["message"]


async def test_invalid_utf_8(site):
    headers = {"content-type": "application/json"}
    data = b'{"prompt": "\xc3\x28"}'
    async with site.client.post(site.url + "/v1/completions", data=data, headers=headers) as reply:
        assert reply.status == 400


async def test_a_stalled_reader(site):
    stalled = socket.socket()
    stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    stalled.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(stalled, ("127.0.0.1", site.port))
    wordy = {"logprobs": 20, "ignore_eos": True, "max_tokens": 4000, "n": 2, "stream": True}
    await loop.sock_sendall(stalled, post_bytes(ASK | wordy))
    await site.load(1)
    aborted = site.engine.stats().finished.get("aborted", 0)
    assert (await site.post("/v1/completions", ASK))[0] == 200
    await site.idle()
    assert site.engine.stats().finished["aborted"] == aborted + 2, "it was served whole, not dropped"
    stalled.close()


@pytest.mark.parametrize("stream", [False, True])
async def test_200_simultaneous_disconnects(site, stream):
    writers = []
    for _ in range(200):
        _, writer = await asyncio.open_connection("127.0.0.1", site.port)
        writer.write(post_bytes(ASK | {"max_tokens": 2000, "ignore_eos": True, "stream": stream}))
        writers.append(writer)
    await site.load(200)
    for writer in writers:
        writer.transport.abort()
    await site.idle()
    stats = site.engine.stats()
    assert stats.running == stats.waiting == stats.kv_used_slots == 0


async def test_a_queue_overflow(site):
    body = ASK | {"max_tokens": 40, "ignore_eos": True, "n": 128}
    replies = await asyncio.gather(*(site.post("/v1/completions", body) for _ in range(8)))
    statuses = [status for status, _ in replies]
    assert statuses.count(503) >= 1
    assert statuses.count(200) >= 1
    assert set(statuses) == {200, 503}


async def test_echoed_logprobs_are_those_of_transformers(site):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    ids = [5, 9, 40, 41, 7, 200, 31]
    body = {"prompt": ids, "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0}
    _, answer = await site.post("/v1/completions", body)
    scores = answer["choices"][0]["logprobs"]
    model = transformers.AutoModelForCausalLM.from_pretrained(site.engine.card.root)
    with torch.inference_mode():
        logits_TV = model(torch.tensor([ids])).logits[0]
    expected_TV = torch.log_softmax(logits_TV.float(), -1)
    ours = scores["token_logprobs"]
    assert ours[0] is None
    for i, token in enumerate(ids[1:]):
        assert ours[i + 1] == pytest.approx(float(expected_TV[i, token]), abs=1e-3)
        assert max(scores["top_logprobs"][i + 1].values()) == pytest.approx(
            float(expected_TV[i].max()), abs=1e-3
        )
    assert ours[len(ids)] == pytest.approx(float(expected_TV[-1].max()), abs=1e-3)
