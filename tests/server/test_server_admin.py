import json

from prometheus_client.parser import text_string_to_metric_families


async def test_models_tell_root_and_length(site):
    _, text = await site.get("/v1/models")
    [card] = json.loads(text)["data"]
    assert (card["id"], card["root"], card["max_model_len"]) == ("tiny", site.engine.card.root, 512)


async def test_tokenize_and_detokenize_are_inverse(site):
    _, answer = await site.post("/tokenize", {"prompt": "hello there", "return_token_strs": True})
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"])
    assert answer["max_model_len"] == 512
    _, back = await site.post("/detokenize", {"tokens": answer["tokens"]})
    assert back == {"prompt": "hello there"}


async def test_a_long_text_is_tokenised_off_the_loop(site):
    text = "hello " * 1000
    _, answer = await site.post("/tokenize", {"prompt": text})
    assert answer["tokens"] == site.engine.tokenizer.encode(text)


async def test_tokenize_takes_one_of_prompt_and_messages(site):
    assert (await site.post("/tokenize", {}))[0] == 400
    assert (await site.post("/detokenize", {"tokens": [10**6]}))[0] == 400
    talk = [{"role": "user", "content": "x"}]
    assert (await site.post("/tokenize", {"prompt": "x", "messages": talk}))[0] == 400
    _, answer = await site.post("/tokenize", {"messages": talk})
    assert site.engine.tokenizer.decode(answer["tokens"]) == "user: x\nassistant:"


async def test_tokenizer_info_names_the_end_token(site):
    info = json.loads((await site.get("/tokenizer_info"))[1])
    assert info["eos_token"] == "<|end|>"
    assert info["chat_template"] == site.engine.tokenizer.chat_template


async def test_metrics_have_the_names_that_dashboards_know(site):
    await site.post("/v1/completions", {"prompt": [10, 11], "max_tokens": 4})
    _, text = await site.get("/metrics")
    families = {family.name: family for family in text_string_to_metric_families(text)}
    for name in (
        "num_requests_running",
        "num_requests_waiting",
        "kv_cache_usage_perc",
        "cache_config_info",
        "prompt_tokens",
        "generation_tokens",
        "num_preemptions",
        "prefix_cache_queries",
        "prefix_cache_hits",
        "request_success",
        "admission_rejections",
        "time_to_first_token_seconds",
        "inter_token_latency_seconds",
        "request_time_per_output_token_seconds",
        "e2e_request_latency_seconds",
        "request_prompt_tokens",
        "request_generation_tokens",
        "request_queue_time_seconds",
        "request_prefill_time_seconds",
        "request_decode_time_seconds",
        "request_inference_time_seconds",
        "iteration_tokens_total",
    ):
        assert f"vllm:{name}" in families
    values = {
        (s.name, s.labels.get("finished_reason")): s.value for f in families.values() for s in f.samples
    }
    assert values["vllm:request_success_total", "length"] == 1
    assert values["vllm:request_generation_tokens_sum", None] == 4
    assert values["vllm:time_to_first_token_seconds_count", None] == 1
    assert values["vllm:kv_cache_usage_perc", None] == 0
    assert values["vllm:iteration_tokens_total_sum", None] == 2 + 3, "two of the prompt, three drawn ones"
    assert values["vllm:request_queue_time_seconds_count", None] == 1
    assert "plait:instance_kv_slots" in families


async def test_two_apps_have_two_registries(open_site):
    first, second = await open_site(), await open_site()
    await first.post("/v1/completions", {"prompt": [10], "max_tokens": 1})
    assert "first_token_seconds_count" in (await second.get("/metrics"))[1]
    assert (
        'e2e_request_latency_seconds_count{engine="0",model_name="tiny"} 0.0'
        in (await second.get("/metrics"))[1]
    )


async def test_openapi_declares_every_error(site):
    schema = json.loads((await site.get("/openapi.json"))[1])
    responses = schema["paths"]["/v1/completions"]["post"]["responses"]
    assert set(responses) == {"200", "400", "401", "404", "413", "429", "431", "4XX", "500", "503", "504"}


async def test_version_and_load(site):
    assert "version" in (await site.get("/version"))[1]
    assert json.loads((await site.get("/load"))[1]) == {"server_load": 0}
    assert (await site.post("/ping"))[0] == 200
