import asyncio
import io
import json
import sys

import pytest
from rich.console import Console

from plait.cli import chat
from plait.client.chat import ChatConfig
from plait.server.config import ServerConfig
from plait.spec.errors import ServiceError, UserError
from tests.server.conftest import Site, serving
from tests.server.counting import counting_engine

HI = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def site(tmp_path):
    async with serving(counting_engine(tmp_path), ServerConfig(api_keys=("k",))) as site:
        yield site


def peer(site: Site, **changes) -> ChatConfig:
    return ChatConfig(**({"url": site.url, "api_key": "k", "max_tokens": 5, "temperature": 0} | changes))


async def expected(site: Site, messages: list) -> str:
    body = {"messages": messages, "max_tokens": 5}
    headers = {"authorization": "Bearer k"}
    _, answer = await site.post("/v1/chat/completions", body, headers=headers)
    return answer["choices"][0]["message"]["content"]


async def test_one_question(site, capsys):
    await chat._talk(peer(site), [], "hi", as_json=False)
    assert capsys.readouterr().out == await expected(site, HI) + "\n"


async def test_one_question_as_json(site, capsys):
    await chat._talk(peer(site), [], "hi", as_json=True)
    assert json.loads(capsys.readouterr().out) == {"model": "tiny", "answer": await expected(site, HI)}


async def test_a_conversation_is_remembered(site, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi\nagain\n\n"))
    history: list = []
    await chat._talk(peer(site), history, None, as_json=False)
    assert [turn["role"] for turn in history] == ["user", "assistant", "user", "assistant"]
    assert history[3]["content"] == await expected(site, history[:3])


async def test_a_wrong_key_is_told(site):
    with pytest.raises(UserError, match="valid API key"):
        await chat._talk(peer(site, api_key="x"), [], "hi", as_json=False)


async def test_an_answer_that_breaks_off_is_an_error(site):
    site.engine.fleet.hold_after = 1
    asking = asyncio.ensure_future(chat._talk(peer(site), [], "hi", as_json=False))
    async with asyncio.timeout(30):
        while not site.engine.stats().generation_tokens:
            await site.get("/health")
    site.engine.fleet.die()
    with pytest.raises(ServiceError, match="worker"):
        await asking


async def test_no_server_says_what_to_do():
    nowhere = ChatConfig("http://127.0.0.1:1")
    with pytest.raises(UserError, match="plait serve"):
        await chat._talk(nowhere, [], "hi", as_json=False)


def test_the_end_of_input_is_an_empty_question(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert chat._read(Console(file=io.StringIO())) == ""
