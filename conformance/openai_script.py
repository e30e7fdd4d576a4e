"""What a user of openai-python does, with what it must get. Arguments: base URL, model, a good key.

Run by the interpreter that has openai installed; imports nothing of ours.
"""

import json
import re
import sys

import openai


def check_models(client: openai.OpenAI, model: str) -> None:
    """The list has the model, and the model can be asked for."""
    assert [card.id for card in client.models.list()] == [model]
    assert client.models.retrieve(model).id == model


def check_completions(client: openai.OpenAI, model: str) -> None:
    """n, seed, stop, logprobs, echo; equal seeds give equal texts."""
    ask = {"model": model, "prompt": "Once upon a time", "max_tokens": 12, "seed": 7}
    one, two = (client.completions.create(**ask, n=2, temperature=1.0) for _ in range(2))
    assert [c.text for c in one.choices] == [c.text for c in two.choices]
    assert one.usage is not None
    assert one.usage.completion_tokens == sum(12 if c.finish_reason == "length" else 0 for c in one.choices)
    greedy = client.completions.create(**ask, temperature=0, logprobs=3, echo=True)
    scores = greedy.choices[0].logprobs
    assert greedy.choices[0].text.startswith("Once upon a time")
    assert scores is not None
    assert scores.token_logprobs is not None
    assert scores.token_logprobs[0] is None
    assert all(value <= 0 for value in scores.token_logprobs[1:])
    said = greedy.choices[0].text.removeprefix("Once upon a time")
    cut = said[2:4]
    stopped = client.completions.create(**ask, temperature=0, stop=cut)
    assert stopped.choices[0].text == said.split(cut)[0]
    assert stopped.choices[0].finish_reason == "stop"


def check_chat(client: openai.OpenAI, model: str) -> None:
    """A stream says what the whole answer says, and ends with the usage."""
    ask = {"model": model, "temperature": 0, "max_completion_tokens": 16}
    ask["messages"] = [{"role": "user", "content": [{"type": "text", "text": "Say hello."}]}]
    whole = client.chat.completions.create(**ask, logprobs=True, top_logprobs=2)
    *chunks, last = client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert last.choices == []
    assert last.usage.total_tokens == whole.usage.total_tokens
    content = whole.choices[0].logprobs.content
    assert content is not None
    assert all(len(token.top_logprobs) == 2 for token in content)


def check_forms(client: openai.OpenAI, model: str) -> None:
    """Answers obey a schema, a pattern and a choice, by OpenAI's words and by vLLM's."""
    ask = {"model": model, "max_tokens": 64, "messages": [{"role": "user", "content": "Where is Rome?"}]}
    place = {
        "type": "object",
        "properties": {"country": {"enum": ["Italy", "Spain"]}, "sea": {"type": "boolean"}},
        "required": ["country", "sea"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": place, "strict": True}}
    said = json.loads(client.chat.completions.create(**ask, response_format=form).choices[0].message.content)
    assert said["country"] in {"Italy", "Spain"}
    assert isinstance(said["sea"], bool)
    for wish, pattern in (({"regex": "[a-z]{3}"}, "[a-z]{3}"), ({"choice": ["near", "far"]}, "near|far")):
        answer = client.chat.completions.create(**ask, extra_body={"structured_outputs": wish})
        assert re.fullmatch(pattern, answer.choices[0].message.content)


def check_refusals(client: openai.OpenAI, model: str) -> None:
    """Every refusal has the class that the library gives its status."""
    hi = [{"role": "user", "content": "hi"}]
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    schema = {
        "type": "json_schema",
        "json_schema": {"name": "x", "schema": {"type": "array", "uniqueItems": True}},
    }
    cases = [
        (openai.NotFoundError, {"model": "huge", "messages": hi}),
        (openai.BadRequestError, {"model": model, "messages": []}),
        (openai.BadRequestError, {"model": model, "messages": hi, "temperature": -1}),
        (openai.BadRequestError, {"model": model, "messages": hi, "tools": [tool]}),
        (openai.BadRequestError, {"model": model, "messages": hi, "response_format": schema}),
        (openai.BadRequestError, {"model": model, "messages": hi, "max_tokens": 10**7}),
    ]
    for kind, ask in cases:
        expect(kind, lambda ask=ask: client.chat.completions.create(**ask))
    stranger = client.with_options(api_key="wrong")
    expect(openai.AuthenticationError, stranger.models.list)


def expect(kind: type[Exception], call) -> None:
    """The call raises exactly this."""
    try:
        call()
    except kind:
        return
    raise AssertionError(f"{kind.__name__} was not raised")


def main() -> None:
    """Run all checks."""
    base, model, key = sys.argv[1:]
    client = openai.OpenAI(base_url=base + "/v1", api_key=key)
    for check in (check_models, check_completions, check_chat, check_forms, check_refusals):
        check(client, model)
        sys.stdout.write(f"{check.__name__} ok\n")


if __name__ == "__main__":
    main()
