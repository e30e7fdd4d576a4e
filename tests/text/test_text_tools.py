"""Calls of tools in texts, cut into pieces at random places; and texts that are made to be calls."""

import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.spec.errors import UserError
from plait.text.matcher import Grammars
from plait.text.tokenizer import Tokenizer
from plait.text.tool_format import FORMATS, Tool, format_named, of_calls, of_text
from plait.text.tool_parser import Argued, Began, Said, ToolParser
from tests.scale import scaled, seed


def parsed(name, *pieces):
    """(text, [(name, arguments)]) of a text in pieces."""
    parser = ToolParser(FORMATS[name])
    found = [each for piece in pieces for each in parser.push(piece)] + parser.flush()
    text, calls = "", []
    for each in found:
        if isinstance(each, Said):
            text += each.text
        elif isinstance(each, Began):
            calls.append((each.name, ""))
        else:
            calls[-1] = (calls[-1][0], calls[-1][1] + each.text)
    assert parser.calls == len(calls)
    return text, calls


HERMES = '<tool_call>\n{"name": "f", "arguments": {"a": "x}\\"", "b": [1, {}]}}\n</tool_call>'
F = ("f", '{"a": "x}\\"", "b": [1, {}]}')
CASES = {
    ("hermes", HERMES): ("", [F]),
    ("hermes", f"Let me see.\n{HERMES}\n{HERMES}\n"): ("Let me see.", [F, F]),
    ("hermes", f"{HERMES}\n\nThen that. "): ("Then that. ".rstrip(), [F]),
    ("hermes", "no call < at all, <tool_box> "): ("no call < at all, <tool_box> ", []),
    ("hermes", '<tool_call>{"arguments": {"z": 1 }, "name": "g"}</tool_call>'): ("", [("g", '{"z": 1 }')]),
    ("hermes", '<tool_call>{"name": "g"}</tool_call>'): ("", [("g", "{}")]),
    ("hermes", '<tool_call>{"name": "g", "arguments": {"z": [1'): ("", [("g", '{"z": [1')]),
    ("hermes", '<tool_call>{"name": "g", "arguments": {}}\n</tool'): ("", [("g", "{}")]),
    ("hermes", '<tool_call>{"nam'): ('<tool_call>{"nam', []),
    ("hermes", "<tool_call> no object </tool_call>"): ("<tool_call> no object </tool_call>", []),
    ("hermes", '<tool_call>{"x": 1}</tool_call>'): ('<tool_call>{"x": 1}</tool_call>', []),
    ("hermes", '{"name": "g", "arguments": {}}'): ('{"name": "g", "arguments": {}}', []),
    ("mistral", '[TOOL_CALLS] [{"name": "f", "arguments": {}}, {"name": "g", "arguments": {"a": 1}}]'): (
        "",
        [("f", "{}"), ("g", '{"a": 1}')],
    ),
    ("mistral", 'Well. [TOOL_CALLS][{"name": "f", "arguments": {}}]'): ("Well.", [("f", "{}")]),
    ("mistral", '[TOOL_CALLS] [{"x": 1}] so'): ('[TOOL_CALLS] [{"x": 1}] so', []),
    ("llama3_json", '{"name": "f", "parameters": {"a": 1}}'): ("", [("f", '{"a": 1}')]),
    ("llama3_json", '{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}'): (
        "",
        [("f", "{}"), ("g", "{}")],
    ),
    ("llama3_json", 'As {"name": "f", "parameters": {}}'): ('As {"name": "f", "parameters": {}}', []),
    ("llama3_json", '{"name": "Ada", "age": 3} she said'): ('{"name": "Ada", "age": 3} she said', []),
    ("llama3_json", '[{"a": 1}]'): ('[{"a": 1}]', []),
}


@pytest.mark.parametrize("case", CASES)
def test_calls_and_text_are_told_apart_however_the_text_is_cut(case):
    name, text = case
    want = CASES[case]
    assert parsed(name, text) == want
    assert parsed(name, *text) == want
    rng = random.Random(seed())
    for _ in range(20):
        cuts = sorted(rng.choices(range(len(text) + 1), k=rng.randint(0, 6)))
        ends = [*cuts, len(text)]
        assert parsed(name, *(text[a:b] for a, b in zip([0, *cuts], ends, strict=True))) == want


PIECES = st.lists(
    st.sampled_from([*'{}[]",: \n;\\a1', "<tool_call>", "</tool_call>", '"name"', '"arguments"'])
)


@settings(max_examples=scaled(20_000), deadline=None, database=None)
@given(st.sampled_from(sorted(FORMATS)), PIECES)
def test_any_text_gives_the_same_whole_or_in_pieces(name, pieces):
    assert parsed(name, *pieces) == parsed(name, "".join(pieces))


@settings(max_examples=scaled(2000), deadline=None, database=None)
@given(st.text("abc<>tool_call \n", max_size=40))
def test_text_without_objects_is_left_as_it_is(text):
    assert parsed("hermes", *text) == (text, [])


@pytest.fixture(scope="module")
def tokenizer(tiny_llama):
    return Tokenizer.load(tiny_llama)


TOOLS = (
    Tool("now", None),
    Tool(
        "weather",
        {
            "type": "object",
            "$defs": {"place": {"enum": ["Oslo", "Rome"]}},
            "properties": {"at": {"$ref": "#/$defs/place"}, "days": {"enum": [1, 2, 3]}},
            "required": ["at"],
            "additionalProperties": False,
        },
    ),
)


@pytest.mark.parametrize("name", sorted(FORMATS))
@pytest.mark.parametrize("several", [False, True])
def test_what_must_be_a_call_is_read_as_one(tokenizer, name, several):
    """Texts drawn at random from the grammar of calls."""
    grammars, rng = Grammars(tokenizer), random.Random(seed())
    form = of_calls(FORMATS[name], TOOLS, tokenizer, several=several)
    grammars.check(form)
    called = []
    for _ in range(20):
        matcher, drawn = grammars.matcher(form, (256,)), np.empty(0, np.int32)
        while len(drawn) < 600:
            token = rng.choice(np.flatnonzero(matcher.allowed(drawn, 288)).tolist())
            if token == 256:
                break
            drawn = np.append(drawn, np.int32(token))
        text, calls = parsed(name, tokenizer.decode(drawn.tolist()))
        if len(drawn) < 600:
            assert not text
            assert calls if several else len(calls) == 1
            called += calls
    assert {tool for tool, _ in called} == {"now", "weather"}
    for tool, arguments in called:
        given_ = json.loads(arguments)
        assert not given_ if tool == "now" else given_["at"] in {"Oslo", "Rome"}


def takes(tokenizer, form, text):
    """How much of a text a grammar takes, and whether it may end there."""
    matcher, ids = Grammars(tokenizer).matcher(form, (256,)), np.array(tokenizer.encode(text), np.int32)
    for count, id in enumerate(ids):
        if not matcher.allowed(ids[:count], 288)[id]:
            return text.encode()[:count].decode(), False
    return text, bool(matcher.allowed(ids, 288)[256])


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_text_may_have_calls_of_these_tools_alone(tokenizer, name):
    form = FORMATS[name]

    def calls(*inner):
        if form.between is None:
            return "\n".join(form.marker + form.before + each + form.after for each in inner)
        return form.marker + form.before + form.between.join(inner) + form.after

    good = f'{{"name": "weather", "{form.arguments}": {{"at": "Rome"}}}}'
    bad = f'{{"name": "weather", "{form.arguments}": {{"at": "Bonn"}}}}'
    free = of_text(form, TOOLS, tokenizer, several=True)
    once = of_text(form, TOOLS, tokenizer, several=False)
    for text in ("", "Just talk, < and [ and {.", calls(good)):
        assert takes(tokenizer, free, text) == takes(tokenizer, once, text) == (text, True)
    for text in (calls(bad), calls(good, bad)):
        assert takes(tokenizer, free, text)[0] == text[: text.index("Bonn")]
    assert takes(tokenizer, free, calls(good, good)) == (calls(good, good), True)
    assert takes(tokenizer, once, calls(good, good))[0] != calls(good, good)
    if form.marker:
        said = "Let me see. " + calls(good)
        assert takes(tokenizer, once, said) == (said, True)


def test_an_unknown_parser_is_refused():
    with pytest.raises(UserError, match="choose hermes, mistral, llama3_json"):
        format_named("qwen")


def test_pieces_of_arguments_come_as_they_are_written():
    parser = ToolParser(FORMATS["hermes"])
    assert parser.push('<tool_call>{"name": "f", "argu') == []
    assert parser.push('ments": {"a": ') == [Began("f"), Argued('{"a":')]
    assert parser.push('"b c"') == [Argued(' "b c"')]
    assert parser.push("}}") == [Argued("}")]
