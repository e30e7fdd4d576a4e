import json

import pytest


async def events(reply) -> list:
    """The chunks of a stream; the last is "[DONE]" if it ended in order."""
    found = []
    async for line in reply.content:
        if line.startswith(b"data: "):
            data = line[6:].strip()
            found.append("[DONE]" if data == b"[DONE]" else json.loads(data))
    return found


async def test_a_completion_continues_the_prompt(site):
    status, answer = await site.post("/v1/completions", {"prompt": [10, 11], "max_tokens": 3})
    assert status == 200
    [choice] = answer["choices"]
    assert choice["text"] == site.engine.tokenizer.decode([12, 13, 14])
    assert choice["finish_reason"] == "length"
    assert answer["usage"]["prompt_tokens"] == 2
    assert answer["usage"]["completion_tokens"] == 3
    assert answer["model"] == "tiny"


@pytest.mark.parametrize("prompt", ["hello", ["hello", "time"], [5, 6], [[5, 6], [7]]])
async def test_every_form_of_prompt_and_n_choices(site, prompt):
    status, answer = await site.post("/v1/completions", {"prompt": prompt, "n": 2, "max_tokens": 2})
    assert status == 200
    several = isinstance(prompt, list) and not isinstance(prompt[0], int)
    assert [choice["index"] for choice in answer["choices"]] == list(range(4 if several else 2))


@pytest.mark.parametrize("step_tokens", [2, 512])
async def test_a_stream_says_what_the_whole_answer_says(open_site, step_tokens):
    site = await open_site(engine={"step_tokens": step_tokens})
    body = {"prompt": "hello", "max_tokens": 9, "n": 3, "logprobs": 2, "echo": True, "prompt_logprobs": 1}
    _, whole = await site.post("/v1/completions", body)
    options = {"include_usage": True, "continuous_usage_stats": True}
    streamed = body | {"stream": True, "stream_options": options}
    async with site.client.post(site.url + "/v1/completions", json=streamed) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        *chunks, last, done = await events(reply)
    assert done == "[DONE]"
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]
    assert all("usage" in chunk for chunk in chunks)
    for choice in whole["choices"]:
        parts = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == choice["index"]]
        assert "".join(part["text"] for part in parts) == choice["text"]
        for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            assert [v for part in parts for v in part["logprobs"][key]] == choice["logprobs"][key]
        assert parts[0]["prompt_logprobs"] == choice["prompt_logprobs"]
        assert parts[-1]["finish_reason"] == choice["finish_reason"]


async def test_echo_with_logprobs_has_the_shape_that_lm_eval_slices(site):
    body = {
        "prompt": [[40, 41, 42]],
        "max_tokens": 1,
        "echo": True,
        "logprobs": 1,
        "seed": 1,
        "temperature": 0,
    }
    _, answer = await site.post("/v1/completions", body)
    scores = answer["choices"][0]["logprobs"]
    assert scores["token_logprobs"] == [None, -0.5, -0.5, -0.5]
    assert scores["top_logprobs"][0] is None
    assert all(max(top.values()) == -0.5 for top in scores["top_logprobs"][1:])
    assert len(scores["tokens"]) == 4
    assert scores["text_offset"] == [0, 1, 2, 3]


async def test_max_tokens_0_scores_the_prompt_only(site):
    body = {"prompt": [40, 41], "max_tokens": 0, "echo": True, "logprobs": 0}
    _, answer = await site.post("/v1/completions", body)
    assert answer["choices"][0]["logprobs"]["token_logprobs"] == [None, -0.5]
    assert answer["choices"][0]["text"] == site.engine.tokenizer.decode([40, 41])
    assert answer["usage"]["completion_tokens"] == 0


async def test_token_ids_come_back(site):
    body = {"prompt": [40], "max_tokens": 2, "return_token_ids": True, "logprobs": 0}
    _, answer = await site.post("/v1/completions", body | {"return_tokens_as_token_ids": True})
    [choice] = answer["choices"]
    assert choice["token_ids"] == [41, 42]
    assert choice["prompt_token_ids"] == [40]
    assert choice["logprobs"]["tokens"] == ["token_id:41", "token_id:42"]


async def test_prompt_logprobs(site):
    body = {"prompt": [40, 41], "max_tokens": 1, "prompt_logprobs": 1}
    _, answer = await site.post("/v1/completions", body)
    assert answer["choices"][0]["prompt_logprobs"][0] is None
    assert answer["choices"][0]["prompt_logprobs"][1]["41"]["rank"] == 1


async def test_stop_strings_and_truncation(site):
    stop = site.engine.tokenizer.decode([43])
    body = {"prompt": [1, 2, 40], "max_tokens": 9, "stop": stop, "truncate_prompt_tokens": 1}
    _, answer = await site.post("/v1/completions", body)
    [choice] = answer["choices"]
    assert choice["text"] == site.engine.tokenizer.decode([41, 42])
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
    assert answer["usage"]["prompt_tokens"] == 1


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 10**400}, None),
        ({"seed": 2**63}, "seed"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"max_tokens": 0}, None),
        ({"max_tokens": 2.5}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"stop": ""}, None),
        ({"min_tokens": 17}, "min_tokens"),
        ({"stop_token_ids": [10**6]}, "stop_token_ids"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"allowed_token_ids": [10**6]}, "allowed_token_ids"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [1, -2]}, "prompt.1"),
        ({"prompt": [10**6]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt.1"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"stream_options": {"include_usage": True}}, None),
        ({"best_of": 3}, None),
        ({"suffix": "end"}, "suffix"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"priority": 1}, "priority"),
        ({"priority": 10**6}, "priority"),
        ({"timeout": 0}, "timeout"),
        ({"prompt": [[1]] * 1000, "n": 2}, "n"),
    ],
)
async def test_a_bad_field_is_named(site, change, param):
    status, answer = await site.post("/v1/completions", {"prompt": "hello"} | change)
    assert status == 400
    assert answer["error"]["type"] == "BadRequestError"
    assert answer["error"]["code"] == 400
    if param is not None:
        assert answer["error"]["param"] == param


async def test_fields_that_ask_for_nothing_are_fine_and_unknown_ones_logged_once(site, caplog):
    body = {"prompt": "hello", "suffix": None, "use_beam_search": False, "wish": 1, "logit_bias": {"5": -1}}
    for _ in range(2):
        status, _ = await site.post("/v1/completions", body)
        assert status == 200
    assert len([r for r in caplog.records if "'wish'" in r.getMessage()]) == 1


async def test_what_the_prefix_cache_found_is_in_the_usage_and_in_the_metrics(site):
    """Both count tokens of prompts: those looked up, and those whose KV was there."""
    body = {"prompt": list(range(40)), "max_tokens": 2}
    cached = [
        (await site.post("/v1/completions", body))[1]["usage"]["prompt_tokens_details"]["cached_tokens"]
        for _ in range(2)
    ]
    assert cached == [0, 32]  # whole pages of 16
    _, text = await site.get("/metrics")
    found = {
        line.split("{")[0]: float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line[0] != "#"
    }
    assert found["vllm:prefix_cache_queries_total"] == 80
    assert found["vllm:prefix_cache_hits_total"] == 32
