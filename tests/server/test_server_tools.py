"""Calls of tools, from a real model through HTTP: what is required is called, and streams say the same."""

import json
import random
from collections.abc import AsyncIterator
from pathlib import Path

import jsonschema
import openai
import pytest
import pytest_asyncio

from plait.runtime.setup import ServeConfig, open_engine
from plait.server.config import ServerConfig
from plait.server.tools import Calls
from plait.serving.manager import ManagerConfig
from plait.text.tool_format import FORMATS
from tests.server.conftest import Site, serving
from tests.server.test_server_chat import streamed

pytestmark = pytest.mark.asyncio(loop_scope="module")

HI = [{"role": "user", "content": "hi"}]
TEMPLATE = """\
{%- if tools %}<|system|>Tools:{% for tool in tools %} {{ tool | tojson }}{% endfor %}<|end|>{% endif %}
{%- for m in messages %}<|{{ 'user' if m.role == 'tool' else m.role }}|>
{%- if m.role == 'tool' %}<tool_response>{{ m.tool_call_id }} {{ m.content }}</tool_response>
{%- else %}{{ m.content }}{% endif %}
{%- for call in m.tool_calls or [] %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|end|>{% endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""
WHERE = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 5}, "warm": {"type": "boolean"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Now.", "parameters": WHERE}}
NOW = {"type": "function", "function": {"name": "now"}}
TOOLS = [WEATHER, NOW]
NAMED = {"type": "function", "function": {"name": "weather"}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    tiny = pytest.importorskip("tests.tiny", reason="needs torch and transformers")
    folder: Path = tiny.tiny_folder(tmp_path_factory.mktemp("models"), max_position_embeddings=2048)
    template = folder / "tools.jinja"
    template.write_text(TEMPLATE)
    manager = ManagerConfig(model="tiny")
    engine = open_engine(
        ServeConfig(str(folder), "tiny", kv_tokens=1 << 14, manager=manager, chat_template=template)
    )
    async with serving(engine, ServerConfig()) as site:
        yield site


async def chat(site, **body):
    status, answer = await site.post(
        "/v1/chat/completions", {"messages": HI, "max_tokens": 300, "temperature": 3.0, "tools": TOOLS} | body
    )
    assert status == 200, answer
    return answer["choices"]


def check_calls(message):
    for call in message["tool_calls"]:
        assert call["type"] == "function"
        arguments = json.loads(call["function"]["arguments"])
        if call["function"]["name"] == "weather":
            jsonschema.validate(arguments, WHERE)
        else:
            assert call["function"]["name"] == "now"
            assert arguments == {}


async def test_a_required_call_is_made(site):
    names = set()
    for seed in range(6):
        [choice] = await chat(site, tool_choice="required", parallel_tool_calls=False, seed=seed)
        message = choice["message"]
        assert message["content"] is None
        assert len(message["tool_calls"]) == 1
        check_calls(message)
        assert choice["finish_reason"] == "tool_calls"
        names.add(message["tool_calls"][0]["function"]["name"])
    assert names == {"weather", "now"}


async def test_the_named_function_is_called_once(site):
    for choice in await chat(site, tool_choice=NAMED, n=4, seed=3):
        [call] = choice["message"]["tool_calls"]
        assert call["function"]["name"] == "weather"
        check_calls(choice["message"])
        assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize("choice", ["required", NAMED, "auto", "none"])
async def test_a_stream_says_what_the_whole_answer_says(site, choice):
    body = {
        "messages": HI,
        "max_tokens": 300,
        "temperature": 3.0,
        "tools": TOOLS,
        "tool_choice": choice,
        "n": 3,
        "seed": 11,
    }
    _, whole = await site.post("/v1/chat/completions", body)
    said = {i: {"content": "", "calls": [], "finish": None} for i in range(3)}
    for chunk in await streamed(site, body):
        [part] = chunk["choices"]
        mine, delta = said[part["index"]], part["delta"]
        mine["content"] += delta.get("content") or ""
        mine["finish"] = part["finish_reason"] or mine["finish"]
        for call in delta.get("tool_calls", []):
            if call["index"] == len(mine["calls"]):
                assert call["type"] == "function"
                assert call["id"]
                mine["calls"].append({"name": call["function"]["name"], "arguments": ""})
            mine["calls"][call["index"]]["arguments"] += call["function"]["arguments"]
    for whole_choice in whole["choices"]:
        mine, message = said[whole_choice["index"]], whole_choice["message"]
        assert mine["content"] == (message["content"] or "")
        assert mine["finish"] == whole_choice["finish_reason"]
        calls = [call["function"] for call in message.get("tool_calls", [])]
        assert mine["calls"] == calls
        assert bool(calls) == (choice in ("required", NAMED))


async def test_openai_python_puts_a_stream_of_calls_together(site):
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
    async with (
        openai.AsyncOpenAI(base_url=site.url + "/v1", api_key="k", max_retries=0) as client,
        client.chat.completions.stream(
            model="tiny",
            messages=HI,
            tools=[strict],
            tool_choice="required",
            parallel_tool_calls=False,
            seed=2,
        ) as stream,
    ):
        final = await stream.get_final_completion()
    [call] = final.choices[0].message.tool_calls
    jsonschema.validate(call.function.parsed_arguments, WHERE)
    assert final.choices[0].finish_reason == "tool_calls"


async def test_strict_tools_leave_text_free(site):
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
    for choice in await chat(site, tools=[strict], n=3, seed=4, max_tokens=40):
        assert choice["message"]["content"]


async def test_ids_of_calls_are_the_answers_own(site):
    choices = await chat(site, tool_choice="required", n=3, seed=1)
    choices += await chat(site, tool_choice="required", n=3, seed=1)
    ids = [call["id"] for choice in choices for call in choice["message"].get("tool_calls", [])]
    assert len(set(ids)) == len(ids) > 3


async def test_tools_and_their_answers_are_shown_to_the_model(site):
    called = {
        "id": "c1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city": "Oslo"}'},
    }
    talk = [
        *HI,
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "c1", "content": "snow"},
    ]
    _, answer = await site.post("/tokenize", {"messages": talk, "tools": TOOLS})
    text = site.engine.tokenizer.decode(answer["tokens"])
    assert text.startswith("<|system|>Tools: " + json.dumps(WEATHER))
    assert '{"name": "weather", "arguments": {"city": "Oslo"}}' in text
    assert "<tool_response>c1 snow</tool_response>" in text
    body = {"messages": talk, "tools": TOOLS, "max_tokens": 2, "return_token_ids": True}
    _, chat = await site.post("/v1/chat/completions", body)
    assert chat["prompt_token_ids"] == answer["tokens"]
    _, none = await site.post("/v1/chat/completions", body | {"tool_choice": "none"})
    assert "Tools:" not in site.engine.tokenizer.decode(none["prompt_token_ids"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "not among the tools"),
        ({"tools": [NOW, NOW]}, "same name"),
        ({"tools": [], "tool_choice": "required"}, "for requests with tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "name"),
        ({"response_format": {"type": "json_object"}}, "set tool_choice to none"),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [{"id": "x", "function": {"name": "f", "arguments": "("}}],
                    }
                ]
            },
            "text of a JSON object",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": "x",
                        "tool_calls": [{"id": "x", "function": {"name": "f", "arguments": "{}"}}],
                    }
                ]
            },
            "assistant",
        ),
        (
            {
                "tool_choice": "required",
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "zoo"}}}],
            },
            "zoo",
        ),
    ],
)
async def test_what_cannot_be_is_refused_in_words(site, change, words):
    status, answer = await site.post("/v1/chat/completions", {"messages": HI, "tools": TOOLS} | change)
    assert status == 400
    assert words in answer["error"]["message"]


async def test_a_template_without_tools_names_the_option(tiny_llama):
    engine = open_engine(ServeConfig(str(tiny_llama), name="tiny", kv_tokens=1 << 12))
    async with serving(engine, ServerConfig()) as plain:
        status, answer = await plain.post("/v1/chat/completions", {"messages": HI, "tools": TOOLS})
        assert status == 400
        assert "--chat-template" in answer["error"]["message"]
        assert answer["error"]["param"] == "tools"


async def test_calls_in_free_text_are_told_from_what_is_said():
    """As an answer's pieces come, cut anywhere."""
    text = 'Well.\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    rng = random.Random(0)
    for _ in range(50):
        calls, at = Calls(FORMATS["hermes"], "id", named=False), 0
        while at < len(text):
            size = rng.randint(1, 9)
            calls.deltas(text[at : at + size], last=at + size >= len(text))
            at += size
        message = calls.message()
        assert message["content"] == "Well."
        [call] = message["tool_calls"]
        assert call["function"] == {"name": "now", "arguments": "{}"}
        assert (calls.finish("stop"), calls.finish("length")) == ("tool_calls", "length")
