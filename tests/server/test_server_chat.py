import json

import pytest

HI = [{"role": "user", "content": "hi"}]
CALL = {"role": "assistant", "content": "", "function_call": {"name": "f"}}
IMAGE = [{"type": "image_url", "image_url": {"url": "x"}}]


async def streamed(site, body) -> list:
    async with site.client.post(site.url + "/v1/chat/completions", json=body | {"stream": True}) as reply:
        lines = [line[6:].strip() async for line in reply.content if line.startswith(b"data: ")]
    assert lines.pop() == b"[DONE]"
    return [json.loads(line) for line in lines]


async def test_parts_and_text_are_the_same_prompt(site):
    parts = [{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}]
    joined = [{"role": "user", "content": "h\ni"}]
    bodies = [{"messages": m, "max_completion_tokens": 4, "return_token_ids": True} for m in (parts, joined)]
    answers = [(await site.post("/v1/chat/completions", body))[1] for body in bodies]
    assert answers[0]["prompt_token_ids"] == answers[1]["prompt_token_ids"]
    message = answers[0]["choices"][0]["message"]
    assert message["role"] == "assistant"
    assert message["content"] == site.engine.tokenizer.decode(answers[0]["choices"][0]["token_ids"])


async def test_a_stream_begins_with_the_role_and_says_the_same(site):
    body = {"messages": HI, "max_tokens": 8, "n": 2, "logprobs": True, "top_logprobs": 2}
    _, whole = await site.post("/v1/chat/completions", body)
    chunks = await streamed(site, body | {"stream_options": {"include_usage": True}})
    # The second time, the prompt is in the prefix cache.
    assert chunks[-1]["usage"] | {"prompt_tokens_details": {"cached_tokens": 0}} == whole["usage"]
    for choice in whole["choices"]:
        own = [c["choices"][0] for c in chunks[:-1] if c["choices"][0]["index"] == choice["index"]]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(part["delta"]["content"] for part in own) == choice["message"]["content"]
        scores = [score for part in own if part["logprobs"] for score in part["logprobs"]["content"]]
        assert scores == choice["logprobs"]["content"]
        assert scores[0]["top_logprobs"][0]["bytes"] == scores[0]["bytes"]
        assert own[-1]["finish_reason"] == choice["finish_reason"]


async def test_without_a_limit_the_context_is_filled(site):
    _, answer = await site.post("/v1/chat/completions", {"messages": HI, "ignore_eos": True})
    assert answer["usage"]["total_tokens"] == site.engine.card.max_model_len
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_the_final_message_may_be_continued(site):
    talk = [*HI, {"role": "assistant", "content": "well"}]
    body = {"messages": talk, "add_generation_prompt": False, "continue_final_message": True}
    _, answer = await site.post("/tokenize", body)
    assert site.engine.tokenizer.decode(answer["tokens"]) == "user: hi\nassistant: well"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            None,
        ),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"tool_choice": "required"}, None),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"guided_regex": "a", "structured_outputs": {"choice": ["b"]}}, None),
        ({"structured_outputs": {"regex": "a", "backtracking": True}}, "structured_outputs.backtracking"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"messages": [CALL]}, "function_call"),
        ({"top_logprobs": 2}, None),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"echo_": 1, "modalities": ["audio"]}, "modalities"),
    ],
)
async def test_a_bad_field_is_named(site, change, param):
    status, answer = await site.post("/v1/chat/completions", {"messages": HI} | change)
    assert status == 400
    assert answer["error"]["type"] == "BadRequestError"
    if param is not None:
        assert answer["error"]["param"] == param


async def test_harmless_values_pass(site):
    body = {"messages": HI, "max_tokens": 1, "response_format": {"type": "text"}, "tools": [], "store": False}
    assert (await site.post("/v1/chat/completions", body | {"service_tier": "auto"}))[0] == 200
