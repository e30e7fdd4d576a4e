"""Rows with a grammar, on a real model: what they finish is valid, and no schedule changes a token."""

import json
import random
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLParserLimits

from plait.model.model import Model, ModelConfig
from plait.model.wishes import check
from plait.spec.errors import UserError
from plait.spec.sampling import Opened, SamplingParams
from plait.spec.step import Extent, Row, Span, Step
from plait.text import grammar
from plait.text.matcher import Grammars
from plait.text.tokenizer import Tokenizer
from plait.worker.executor import Executor
from tests.scale import scaled, seed
from tests.worker.script import Habits, Script, Task

END = 256
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 4}, "age": {"type": "integer", "maximum": 999}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> Model:
    return Model(ModelConfig(str(tiny_llama), slots=4096, page=16, exact=True))


def leaves() -> st.SearchStrategy[dict]:
    """Schemas of values that end by themselves."""
    words = st.lists(st.text('abé\\"\\n', max_size=3), min_size=1, max_size=3, unique=True)
    return st.one_of(
        st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"const": 7}]),
        st.builds(lambda most: {"type": "string", "maxLength": most}, st.integers(0, 5)),
        st.builds(lambda low: {"type": "integer", "minimum": low, "maximum": low + 90}, st.integers(-50, 50)),
        st.builds(lambda some: {"enum": some}, words),
        st.just({"type": "string", "pattern": "^[a-f]{1,4}$"}),
    )


def nested(inner: st.SearchStrategy[dict]) -> st.SearchStrategy[dict]:
    """Objects and arrays of such."""
    names = st.sampled_from(["a", "b", "c d", 'q"', "é"])
    return st.one_of(
        st.builds(
            lambda item, low: {"type": "array", "items": item, "minItems": low, "maxItems": low + 2},
            inner,
            st.integers(0, 2),
        ),
        st.dictionaries(names, inner, max_size=3).flatmap(_objects),
        st.builds(lambda one, two: {"anyOf": [one, two]}, inner, inner),
    )


def _objects(properties: dict) -> st.SearchStrategy[dict]:
    base = {"type": "object", "properties": properties, "additionalProperties": False}
    if not properties:
        return st.just(base)
    names = st.lists(st.sampled_from(sorted(properties)), unique=True)
    return names.map(lambda some: {**base, "required": some})


SCHEMAS = st.recursive(leaves(), nested, max_leaves=6)


def drawn_by(
    model: Model, wish: SamplingParams, most: int, executor: Executor | None = None
) -> tuple[list[int], str]:
    """What one row draws until it stops, and the fault that it ends with."""
    executor = executor or Executor(model, 0)
    spans = (Span(0, 0, (Extent(0, 512),)),)
    draws = executor.run(
        Step(0, (0,), (Row(0, 0, 3, draws=True, spans=spans),), opened=(0,)),
        (Opened(0, (1, 2, 3), 3, wish, (END,)),),
    )
    tokens = [*draws[0].tokens]
    while not draws[0].stopped and len(tokens) < most:
        draws = executor.run(Step(len(tokens), (0,), (), again=(0,)), ())
        tokens += draws[0].tokens
    return (tokens[:-1] if draws[0].stopped else tokens), draws[0].fault


def test_every_answer_that_ends_obeys_its_schema(model, tiny_llama):
    tokenizer, ends = Tokenizer.load(tiny_llama), []

    @settings(max_examples=scaled(2000), deadline=None, database=None)
    @given(SCHEMAS, st.integers(0, 2**40), st.sampled_from([0.0, 1.0, 5.0]))
    def one(schema: dict, random_seed: int, temperature: float) -> None:
        form = grammar.of_schema(schema, "x")
        wish = SamplingParams(temperature=temperature, seed=random_seed, grammar=form)
        tokens, fault = drawn_by(model, wish, 300)
        assert not fault
        ends.append(len(tokens) < 300)
        if ends[-1]:
            jsonschema.validate(json.loads(tokenizer.decode(tokens)), schema)

    one()
    print(f"{sum(ends)} of {len(ends)} answers ended")
    assert sum(ends) > 0.25 * len(ends), "too few answers end for this to show anything"


def test_schedules_change_no_token(model):
    """Chunked, preempted, beside rows without a grammar, and recomputed from the tokens alone."""
    rng = random.Random(seed())
    forms = [grammar.of_schema(PERSON, "x"), grammar.of_regex("[a-z]{40}", "x"), ""]
    work = [
        Task(
            tuple(rng.randrange(256) for _ in range(rng.randint(1, 40))),
            24,
            SamplingParams(
                temperature=rng.choice([0, 1.0]), seed=i, grammar=forms[i % 3], logprobs=1, top_p=0.9
            ),
        )
        for i in range(15)
    ]
    want = None
    for habits in (Habits(), Habits(batch=7, chunk=5), Habits(batch=5, chunk=30, preempt=0.2)):
        script = Script(Executor(model, 3), work, habits, rng.randrange(2**32))
        got = [tuple((draw.tokens, draw.logprobs) for draw in draws) for draws in script.run()]
        want = want or got
        assert got == want
        assert bool(script.preempted) == bool(habits.preempt)


def test_a_row_that_cannot_go_on_ends_by_itself(model, tiny_llama):
    """A form that takes too much on the way ends its row, and says why."""
    tokenizer, executor = Tokenizer.load(tiny_llama), Executor(model, 0)
    executor.drawer._grammars = Grammars(tokenizer, LLParserLimits(max_lexer_states=100))
    [y] = tokenizer.encode("y")
    form = grammar.of_regex("[xz]{0,5000}x[xz]{0,5000}y", "x")
    wish = SamplingParams(temperature=50.0, grammar=form, logit_bias=((y, -1e9),))
    tokens, fault = drawn_by(model, wish, 500, executor)
    assert 10 < len(tokens) < 499
    assert "too many" in fault


def test_a_row_without_a_grammar_makes_none(model):
    executor = Executor(model, 0)
    opened = Opened(0, (1, 2), 2, SamplingParams(temperature=0), (END,))
    row = Row(0, 0, 2, draws=True, spans=(Span(0, 0, (Extent(0, 16),)),))
    executor.run(Step(0, (0,), (row,), opened=(0,)), (opened,))
    assert executor.drawer._grammars is None


@pytest.mark.parametrize("wish", [{"allowed_token_ids": (1,)}, {"ignore_eos": True}, {"min_tokens": 3}])
def test_what_could_leave_no_token_is_refused(wish):
    with pytest.raises(UserError, match=next(iter(wish))):
        check(SamplingParams(grammar=grammar.of_regex("a", "x"), **wish), 300)


def test_the_tokens_of_a_row_are_not_changed_by_asking(model):
    """The mask is a copy: what is masked for one row is the model's own for the next."""
    wish = SamplingParams(temperature=0)
    free, _ = drawn_by(model, wish, 12)
    drawn_by(model, SamplingParams(temperature=0, grammar=grammar.of_regex("[0-9]{5}", "x")), 12)
    assert drawn_by(model, wish, 12)[0] == free
    assert np.all(np.array(free) >= 0)
