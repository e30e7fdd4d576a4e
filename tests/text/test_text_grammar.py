"""Grammars: what may come next, by a real tokenizer, and which are refused."""

import json
import random

import numpy as np
import pytest

from plait.spec.errors import UserError
from plait.text import grammar
from plait.text.matcher import GrammarFault, Grammars
from plait.text.tokenizer import Tokenizer
from tests.scale import seed

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
STOP = (256, 7)
"""The model's end token, and one that the caller named: it is part of texts too."""


@pytest.fixture(scope="module")
def tokenizer(tiny_llama):
    return Tokenizer.load(tiny_llama)


@pytest.fixture(scope="module")
def grammars(tokenizer):
    return Grammars(tokenizer)


def taken(grammars, tokenizer, form, text):
    """How many bytes of a text a grammar takes, and whether it may end there."""
    matcher = grammars.matcher(form, STOP)
    ids = np.array(tokenizer.encode(text), np.int32)
    for count in range(len(ids) + 1):
        allowed_V = matcher.allowed(ids[:count], 300)
        if count == len(ids):
            return count, bool(allowed_V[256])
        if not allowed_V[ids[count]]:
            return count, False
    raise AssertionError


@pytest.mark.parametrize(
    ("form", "good", "bad"),
    [
        (grammar.of_schema(PERSON, "x"), '{"name": "Ada", "age": 36}', '{"name": 1'),
        (grammar.of_schema(PERSON, "x"), '{\n  "name": "Ada",\n  "age": 36\n}', '{"name":   "Ada"'),
        (grammar.of_schema(json.dumps(PERSON), "x"), '{"name":"","age":0}', '{"age"'),
        (grammar.of_schema({"type": "object"}, "x"), '{"a": [1, null]}', "[1]"),
        (grammar.of_regex("[a-c]{2}/x*", "x"), "ab/xx", "ab/y"),
        (grammar.of_choices(["yes", 'n"o', "maybe\n"], "x"), "maybe\n", "may not"),
        (grammar.of_lark('start: ("a" | "b")+ "."', "x"), "abba.", "abc"),
        (grammar.of_lark('root ::= "a" tail\ntail ::= [0-9]+', "x"), "a12", "ab"),
    ],
)
def test_a_text_is_taken_up_to_where_it_breaks_the_form(grammars, tokenizer, form, good, bad):
    grammars.check(form)
    assert taken(grammars, tokenizer, form, good) == (len(good), True)
    count, ends = taken(grammars, tokenizer, form, bad)
    assert count < len(bad)
    assert not ends


def test_a_matcher_is_a_function_of_the_tokens_drawn(grammars, tokenizer):
    """Whether it has seen them come or gets them all at once."""
    rng = random.Random(seed())
    form = grammar.of_schema(PERSON, "x")
    follows, drawn = grammars.matcher(form, STOP[:1]), np.empty(0, np.int32)
    while True:
        allowed_V = follows.allowed(drawn, 300)
        assert np.array_equal(allowed_V, grammars.matcher(form, STOP[:1]).allowed(drawn, 300))
        token = rng.choice(np.flatnonzero(allowed_V).tolist())
        if token == STOP[0]:
            break
        drawn = np.append(drawn, np.int32(token))
    person = json.loads(tokenizer.decode(drawn.tolist()))
    assert isinstance(person["age"], int)


def test_a_token_that_ends_the_row_may_be_part_of_the_text(grammars, tokenizer):
    form = grammar.of_regex(".{2}", "x")
    matcher = grammars.matcher(form, STOP)
    assert matcher.allowed(np.empty(0, np.int32), 300)[7]
    assert not matcher.allowed(np.empty(0, np.int32), 300)[256]


def test_a_vocabulary_may_be_wider_or_narrower_than_the_tokenizer(grammars):
    none = np.empty(0, np.int32)
    wide_V = grammars.matcher(grammar.of_regex("[ab]", "x"), STOP).allowed(none, 1000)
    assert wide_V.shape == (1000,)
    assert wide_V.sum() == 2
    with pytest.raises(GrammarFault, match="none of the model's tokens"):
        grammars.matcher(grammar.of_regex("\xff", "x"), STOP).allowed(none, 10)


@pytest.mark.parametrize(
    "make",
    [
        lambda: grammar.of_schema({"type": "strnig"}, "x"),
        lambda: grammar.of_schema({"not": {"type": "string"}}, "x"),
        lambda: grammar.of_schema({"type": "array", "uniqueItems": True}, "x"),
        lambda: grammar.of_schema({"$ref": "https://example.org/s.json"}, "x"),
        lambda: grammar.of_schema({"type": "string", "x-guidance": {"lenient": True}}, "x"),
        lambda: grammar.of_schema("[1", "x"),
        lambda: grammar.of_schema("[1]", "x"),
        lambda: grammar.of_schema(False, "x"),
        lambda: grammar.of_schema({"$ref": "#"}, "x"),
        lambda: grammar.of_schema({"oneOf": [{"type": "object"}, {"type": "object"}]}, "x"),
        lambda: grammar.of_regex("(((", "x"),
        lambda: grammar.of_regex("(" * 30_000 + ")" * 30_000, "x"),
        lambda: grammar.of_lark("start: nothing", "x"),
        lambda: grammar.of_lark("start: " + "(" * 3000 + '"a"' + ")" * 3000, "x"),
        lambda: grammar.of_choices(["a" * grammar.LARGEST_CHARS], "x"),
        lambda: grammar.of_schema(
            {"properties": {f"p{i}": {"enum": list(range(200))} for i in range(300)}}, "x"
        ),
    ],
)
def test_what_cannot_be_used_is_refused_in_words(grammars, make):
    with pytest.raises(UserError) as refusal:
        grammars.check(make())
    assert len(str(refusal.value)) < 1000


def test_a_grammar_that_takes_too_much_on_the_way_says_so(grammars, tokenizer):
    matcher = grammars.matcher(grammar.of_regex(".{0,5000}x.{0,5000}y", "x"), STOP)
    rng = random.Random(seed())
    drawn = np.array(tokenizer.encode("".join(rng.choices("xz", k=4000))), np.int32)
    reason = ""
    for count in range(len(drawn)):
        try:
            matcher.allowed(drawn[:count], 300)
        except GrammarFault as fault:
            reason = str(fault)
            break
    assert "too many" in reason
