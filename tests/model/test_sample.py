"""Sampling: every wish against a plain restatement, and randomness that depends on nothing else."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.kernels.sampling import _pick
from plait.model.sample import Round, Turn, draw_rows, logprobs, shares, stream_of
from plait.model.wishes import check
from plait.spec.errors import UserError
from plait.spec.sampling import SamplingParams, TokenLogprob

VOCAB = 20
NO_TOKENS = np.zeros(0, np.int32)


def row(*logits: float) -> np.ndarray:
    return np.array(logits, np.float32)


def draw(logits: np.ndarray, params: SamplingParams, tokens: np.ndarray, prompt: int, stop: tuple) -> int:
    """The next token of one row."""
    return int(draw_rows(logits[None], Round.of([0], [Turn(params, tokens, prompt, stop)]), 1)[0])


def logprob(logits: np.ndarray, token: int, top: int) -> TokenLogprob:
    return logprobs(logits[None], np.zeros(1, np.int64), np.array([token]), [top], 1)[0]


def chances(logits: np.ndarray, draws: int = 4000, tokens: np.ndarray = NO_TOKENS, **wishes) -> np.ndarray:
    """How often each token is drawn over many seeds."""
    found = [
        draw(logits, SamplingParams(seed=seed, **wishes), tokens, len(tokens), ()) for seed in range(draws)
    ]
    return np.bincount(found, minlength=len(logits)) / draws


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


def test_draws_follow_the_distribution():
    logits = row(0.0, 1.0, -1.0, 2.0, 0.5)
    assert np.abs(chances(logits) - softmax(logits)).max() < 0.03
    assert np.abs(chances(logits, temperature=0.5) - softmax(logits / 0.5)).max() < 0.03


def test_greedy_takes_the_lowest_id_of_a_tie():
    assert draw(row(1, 3, 3, 2), SamplingParams(temperature=0), NO_TOKENS, 0, ()) == 1


def uniform(seed: int, choice: int, position: int) -> float:
    return float(shares(np.array([stream_of(seed, choice)], np.uint64), np.array([position]))[0])


def kept(logits: np.ndarray, **wishes) -> set[int]:
    return set(np.flatnonzero(chances(logits, 1500, **wishes)).tolist())


def test_filters_keep_what_they_say():
    logits = np.log(np.array([0.1, 0.4, 0.2, 0.3])).astype(np.float32)
    assert kept(logits, top_k=2) == {1, 3}
    assert kept(logits, top_k=9) == {0, 1, 2, 3}
    assert kept(logits, top_p=0.39) == {1}
    assert kept(logits, top_p=0.6) == {1, 3}
    assert kept(logits, min_p=0.6) == {1, 3}
    assert kept(logits, top_k=3, top_p=0.5) == {1, 3}, "top_p is of what top_k left"
    assert kept(logits, temperature=0.01) == {1}
    assert kept(logits, allowed_token_ids=(0, 2)) == {0, 2}
    assert kept(logits, logit_bias=((0, 50.0),)) == {0}


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 1500), st.floats(0, 1 - 2**-53))
def test_the_picked_token_is_where_the_running_sum_passes(seed, count, share):
    rng = np.random.default_rng(seed)
    weights = rng.integers(0, 2**40, count) * (rng.random(count) < 0.3)
    weights[rng.integers(count)] = 2**40
    token = _pick(weights, share)
    assert weights[token] > 0
    below, total = int(weights[:token].sum()), int(weights.sum())
    assert below <= share * total < below + int(weights[token]) or share * total >= total - 1


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.001, 0.9999), st.sampled_from([0.01, 1.0, 8.0]))
def test_top_p_over_a_large_vocabulary_is_that_of_a_full_sort(seed, top_p, spread):
    """Coarse logits, so that many tokens tie."""
    rng = np.random.default_rng(seed)
    logits = (np.round(rng.standard_normal(3000) * 4) / 4 * spread).astype(np.float32)
    order = np.argsort(-logits, kind="stable")
    steps = np.cumsum(softmax(logits)[order])
    allowed = set(order[: int(np.searchsorted(steps, top_p * (1 + 1e-12))) + 1].tolist())
    params = [SamplingParams(top_p=top_p, seed=i) for i in range(20)]
    assert {draw(logits, wish, NO_TOKENS, 0, ()) for wish in params} <= allowed


def test_penalties_look_at_the_right_tokens():
    logits = row(2.0, 1.9, -1.0, 1.0)
    tokens, greedy = np.array([0, 1, 1], np.int32), {"temperature": 0.0}

    def next_token(prompt: int, **wishes) -> int:
        return draw(logits, SamplingParams(**greedy, **wishes), tokens, prompt, ())

    assert next_token(3) == 0
    assert next_token(3, repetition_penalty=2.5) == 3, "the prompt counts"
    assert next_token(3, presence_penalty=5.0) == 0, "the prompt does not count"
    assert next_token(0, presence_penalty=1.5) == 3
    assert next_token(0, frequency_penalty=0.6) == 0, "once 0.6 is less than twice 0.6"
    assert next_token(1, frequency_penalty=0.6) == 0
    assert (
        draw(row(-1.0, -1.2), SamplingParams(temperature=0, repetition_penalty=2), np.array([0]), 1, ()) == 1
    )


def test_min_tokens_masks_stop_tokens_until_enough_are_drawn():
    params = SamplingParams(temperature=0, min_tokens=2)
    logits, tokens = row(0, 5, 1), np.array([7, 7, 7], np.int32)
    assert [draw(logits, params, tokens, prompt, (1, 99)) for prompt in (3, 2, 1)] == [2, 2, 1]
    only = SamplingParams(temperature=0, min_tokens=2, allowed_token_ids=(1,))
    assert draw(logits, only, tokens, 3, (1,)) == 1, "where nothing else is allowed the stop token is drawn"


@settings(max_examples=200)
@given(st.integers(0, 2**64 - 1), st.integers(0, 100), st.integers(0, 10**6))
def test_randomness_is_a_function_of_seed_choice_and_position(seed, choice, position):
    value = uniform(seed, choice, position)
    assert 0 <= value < 1
    assert value == uniform(seed, choice, position)
    assert value not in (uniform(seed, choice + 1, position), uniform(seed, choice, position + 1))


def test_shares_are_those_of_splitmix64():
    """The published generator, started at a row's stream, one step a position."""
    state, word = stream_of(7, 3), 2**64 - 1
    for position in range(50):
        state = (state + 0x9E3779B97F4A7C15) & word
        z = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & word
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & word
        assert uniform(7, 3, position) == ((z ^ z >> 31) >> 11) * 2.0**-53


def test_uniform_is_uniform():
    streams = np.array([stream_of(s, c) for s in range(20) for c in range(5)], np.uint64)
    values = np.array([shares(streams, np.full(100, p)) for p in range(100)])
    counts = np.histogram(values, 10, (0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 30


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.floats(-30, 30, width=32), min_size=VOCAB, max_size=VOCAB),
    st.builds(
        SamplingParams,
        temperature=st.sampled_from([0.0, 0.01, 1.0, 5.0]),
        top_k=st.integers(0, 30),
        top_p=st.floats(0.01, 1.0),
        min_p=st.floats(0, 1),
        repetition_penalty=st.floats(0.1, 3),
        presence_penalty=st.floats(-2, 2),
        frequency_penalty=st.floats(-2, 2),
        min_tokens=st.integers(0, 9),
        logit_bias=st.lists(st.tuples(st.integers(0, VOCAB - 1), st.floats(-100, 100)), max_size=3).map(
            tuple
        ),
        allowed_token_ids=st.lists(st.integers(0, VOCAB - 1), max_size=4).map(tuple),
        seed=st.integers(0, 2**63),
    ),
    st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=12),
)
def test_every_wish_gives_an_allowed_token(logits, params, tokens):
    check(params, VOCAB)
    known = np.array(tokens, np.int32)
    token = draw(row(*logits), params, known, 1, (3, 4))
    assert 0 <= token < VOCAB
    assert token == draw(row(*logits), params, known, 1, (3, 4))
    if params.allowed_token_ids:
        assert token in params.allowed_token_ids


def test_log_probabilities_are_of_the_models_own_distribution():
    logits = row(0.5, 2.0, -1.0, 2.0)
    got = logprob(logits, 2, 3)
    want = np.log(softmax(logits))
    assert got.token == 2
    assert got.logprob == pytest.approx(want[2])
    assert [token for token, _ in got.top] == [1, 3, 0]
    assert [value for _, value in got.top] == pytest.approx(want[[1, 3, 0]].tolist())
    assert logprob(logits, 2, 0).top == ()
    assert len(logprob(logits, 2, 50).top) == 4


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1.0),
        ("temperature", math.nan),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("min_p", -0.1),
        ("repetition_penalty", 0.0),
        ("logit_bias", ((VOCAB, 1.0),)),
        ("logit_bias", ((1, math.inf),)),
        ("allowed_token_ids", (-1,)),
    ],
)
def test_impossible_wishes_are_refused(field, value):
    with pytest.raises(UserError) as refused:
        check(SamplingParams(**{field: value}), VOCAB)
    assert refused.value.param == field


def test_rows_that_draw_from_other_logits_know_it():
    def alters(**wishes) -> bool:
        return Turn(SamplingParams(**wishes), np.zeros(3, np.int32), 2, ()).alters

    assert not alters(temperature=0.5, top_p=0.5, top_k=3, min_p=0.1, seed=5, stop_token_ids=(1,), logprobs=2)
    assert not alters(min_tokens=1)
    for wish in (
        {"min_tokens": 2},
        {"logit_bias": ((1, 1.0),)},
        {"allowed_token_ids": (1,)},
        {"repetition_penalty": 1.1},
        {"presence_penalty": 0.1},
        {"frequency_penalty": 0.1},
    ):
        assert alters(**wish)


def test_rows_are_drawn_alike_together_and_alone():
    """Rows of all kinds, in any order, and no row's logits change."""
    rng = np.random.default_rng(0)
    logits = (rng.standard_normal((6, 300)) * 3).astype(np.float32)
    before, tokens = logits.copy(), rng.integers(0, 300, 9).astype(np.int32)
    turns = {
        4: Turn(SamplingParams(temperature=0), tokens, 2, ()),
        1: Turn(SamplingParams(presence_penalty=1.0, seed=1), tokens, 2, ()),
        0: Turn(SamplingParams(top_p=0.8, seed=2), tokens, 2, ()),
        5: Turn(SamplingParams(temperature=0, logit_bias=((7, 9.0),)), tokens, 2, ()),
        3: Turn(SamplingParams(top_k=4, seed=3), tokens, 2, ()),
    }
    alone = [draw(logits[at], t.params, t.tokens, t.prompt, t.stop) for at, t in turns.items()]
    assert draw_rows(logits, Round.of(list(turns), list(turns.values())), 2).tolist() == alone
    drawn = np.array([5, 9, 2, 0])
    for tops in (list(range(4)), [0] * 4):
        told = [logprob(logits[at], int(drawn[at]), tops[at]) for at in range(4)]
        assert logprobs(logits, np.arange(4), drawn, tops, 2) == told
    assert logits.tolist() == before.tolist()


def test_wishes_beyond_float32_draw_what_they_say():
    def greedy(**wishes) -> int:
        params = SamplingParams(temperature=0, **wishes)
        return draw(row(1, 3, 2), params, np.array([0, 1], np.int32), 0, ())

    assert greedy(logit_bias=((0, 1e300),)) == 0
    assert greedy(logit_bias=((1, -1e300),)) == 2
    assert greedy(presence_penalty=1e300) == 2
    assert greedy(presence_penalty=1e300, allowed_token_ids=(1,)) == 1
    assert greedy(repetition_penalty=1e300) == 2
