"""Answers in a prescribed form, from a real model through HTTP."""

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import jsonschema
import pytest
import pytest_asyncio

from plait.runtime.setup import ServeConfig, open_engine
from plait.server.config import ServerConfig
from plait.serving.manager import ManagerConfig
from tests.server.conftest import Site, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")

HI = [{"role": "user", "content": "hi"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 6}, "warm": {"type": "boolean"}},
    "required": ["city", "warm"],
    "additionalProperties": False,
}
NAMED = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA, "strict": True}}
RULES = 'start: ("tick " | "tock ")~2 "!"'


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tiny_llama: Path) -> AsyncIterator[Site]:
    engine = open_engine(
        ServeConfig(str(tiny_llama), name="tiny", kv_tokens=1 << 14, manager=ManagerConfig(model="tiny"))
    )
    async with serving(engine, ServerConfig()) as site:
        yield site


def obeys(text: str) -> bool:
    jsonschema.validate(json.loads(text), SCHEMA)
    return True


@pytest.mark.parametrize(
    ("wish", "fits"),
    [
        ({"response_format": NAMED}, obeys),
        ({"structured_outputs": {"json": SCHEMA}}, obeys),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, obeys),
        ({"guided_json": SCHEMA}, obeys),
        ({"structured_outputs": {"regex": "[a-c]{3}/[0-9]"}}, re.compile("[a-c]{3}/[0-9]").fullmatch),
        ({"guided_regex": "[a-c]{3}"}, re.compile("[a-c]{3}").fullmatch),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, {"yes", "no"}.__contains__),
        ({"guided_choice": ["où", 'a"b']}, {"où", 'a"b'}.__contains__),
        ({"structured_outputs": {"grammar": RULES}}, re.compile("(tick |tock ){2}!").fullmatch),
        ({"guided_grammar": RULES}, re.compile("(tick |tock ){2}!").fullmatch),
    ],
)
async def test_an_answer_has_the_form_asked_for(site, wish, fits):
    for seed in range(1, 4):
        body = {"messages": HI, "max_tokens": 64, "seed": seed} | wish
        status, chat = await site.post("/v1/chat/completions", body)
        assert status == 200, chat
        _, plain = await site.post("/v1/completions", {"prompt": "hi", "max_tokens": 64, "seed": seed} | wish)
        for choice, text in (
            (chat["choices"][0], chat["choices"][0]["message"]["content"]),
            (plain["choices"][0], plain["choices"][0]["text"]),
        ):
            assert choice["finish_reason"] == "stop", text
            assert fits(text), text


async def test_any_json_object_begins_with_a_brace(site):
    body = {"messages": HI, "max_tokens": 20, "response_format": {"type": "json_object"}}
    _, answer = await site.post("/v1/chat/completions", body)
    assert answer["choices"][0]["message"]["content"].startswith("{")


async def test_choices_and_streams_say_the_same(site):
    body = {"messages": HI, "max_tokens": 64, "seed": 5, "n": 3, "response_format": NAMED}
    _, whole = await site.post("/v1/chat/completions", body)
    texts = {choice["message"]["content"] for choice in whole["choices"]}
    assert all(obeys(text) for text in texts)
    parts: dict[int, str] = {}
    async with site.client.post(site.url + "/v1/chat/completions", json=body | {"stream": True}) as reply:
        async for line in reply.content:
            if line.startswith(b"data: {"):
                [choice] = json.loads(line[6:])["choices"]
                text = choice["delta"].get("content", "")
                parts[choice["index"]] = parts.get(choice["index"], "") + text
    assert set(parts.values()) == texts


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"guided_regex": "((("}, "unclosed group"),
        ({"response_format": {**NAMED, "json_schema": {"name": "x", "schema": {"type": "zoo"}}}}, "zoo"),
        ({"guided_json": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
        ({"guided_json": "{"}, "guided_json cannot be read"),
        ({"guided_choice": ["a" * 200_000]}, "characters, more than"),
        ({"guided_regex": "a", "min_tokens": 2}, "min_tokens does not go with"),
        ({"guided_regex": "a", "ignore_eos": True}, "ignore_eos does not go with"),
        ({"guided_regex": "a", "allowed_token_ids": [3]}, "allowed_token_ids does not go with"),
    ],
)
async def test_a_form_that_cannot_be_kept_is_refused_in_words(site, wish, words):
    status, answer = await site.post("/v1/chat/completions", {"messages": HI} | wish)
    assert status == 400
    assert words in answer["error"]["message"]
    await site.idle()
