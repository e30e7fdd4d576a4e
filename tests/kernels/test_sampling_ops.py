"""Native draws of every instruction set are the numpy definition's, bit for bit."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.kernels.choice import choose
from plait.kernels.sampling import UNIT, WISH, Native, Reference, exponential, wish

REFERENCE = Reference()
ISAS = choose().native.isas() if choose().native else []
native_only = pytest.mark.skipif(not ISAS, reason="no native kernels")

TEMPERATURES = st.sampled_from([0.0, 1e-300, 1e-6, 0.01, 0.7, 1.0, 1.3, 30.0, 1e9, 1e300])
TOP_P = st.one_of(
    st.sampled_from([1e-300, 1e-9, 0.1, 0.5, 0.9, 0.999999, 1 - 2**-53, 1.0]),
    st.floats(0, 1, exclude_min=True),
)
SHARES = st.one_of(st.sampled_from([0.0, 2**-53, 1 - 2**-53]), st.floats(0, 1, exclude_max=True))
WISHES = st.builds(
    wish,
    TEMPERATURES,
    st.one_of(st.just(0.0), st.sampled_from([1e-300, 1e-9, 1.0]), st.floats(0, 1)),
    st.one_of(st.sampled_from([0, 1, 2, 50, 10**6]), st.integers(0, 2500)),
    TOP_P,
    SHARES,
)
VOCABS = st.one_of(st.integers(1, 40), st.integers(200, 600), st.integers(2000, 6000))


def rows_of(seed: int, rows: int, vocab: int) -> np.ndarray:
    """Logits of every kind: flat, steep, tied, masked, sorted, huge, tiny."""
    rng = np.random.default_rng(seed)
    spread = rng.choice([1e-30, 1e-6, 0.1, 1, 4, 30, 1e4, 1e30], (rows, 1))
    logits = rng.standard_normal((rows, vocab)) * spread + rng.choice([0, 0, 17.3, -1e4, 1e6], (rows, 1))
    for row in logits:
        kind = rng.integers(6)
        if kind == 0:
            row[:] = np.round(row / 2) * 2
        elif kind == 1:
            row[rng.random(vocab) < rng.random()] = -np.inf
        elif kind == 2:
            row.sort()
        elif kind == 3:
            row[:] = rng.choice([-3e38, 0, 1, 3e38], vocab)
        elif kind == 4:
            row[:] = row[0]
        if not np.isfinite(row.max()):
            row[rng.integers(vocab)] = 0
    return logits.astype(np.float32)


@native_only
@settings(max_examples=400, deadline=None)
@given(st.lists(WISHES, min_size=1, max_size=5), st.integers(0, 2**32), VOCABS, st.sampled_from(ISAS or [""]))
def test_draws_are_those_of_the_definition(wishes, seed, vocab, isa):
    wide_LV = rows_of(seed, len(wishes) + 2, vocab + 3)
    logits_LV = wide_LV[:, :vocab]
    logits_LV[~np.isfinite(logits_LV.max(1)), 0] = 0
    at_R = np.random.default_rng(seed).permutation(len(logits_LV))[: len(wishes)]
    wishes_R = np.array(wishes, WISH)
    want = REFERENCE.draw(logits_LV, at_R, wishes_R, 1)
    assert ((want >= 0) & (want < vocab)).all()
    assert Native(isa).draw(logits_LV, at_R, wishes_R, 2).tolist() == want.tolist()


@native_only
@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), VOCABS, st.integers(0, 60), st.sampled_from(ISAS or [""]))
def test_scores_are_those_of_the_definition(seed, vocab, top, isa):
    logits_LV, top = rows_of(seed, 4, vocab), min(top, vocab)
    at_R = np.array([2, 0, 3])
    got = Native(isa).score(logits_LV, at_R, top, 2)
    for ours, theirs in zip(got, REFERENCE.score(logits_LV, at_R, top, 1), strict=True):
        assert ours.tolist() == theirs.tolist()


@pytest.mark.parametrize("isa", [*ISAS, "reference"])
@pytest.mark.parametrize("vocab", [1, 5, 16, 700])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_whose_largest_logit_is_not_finite_are_told(isa, vocab, temperature):
    ops = REFERENCE if isa == "reference" else Native(isa)
    logits_LV = np.zeros((4, vocab), np.float32)
    logits_LV[0, vocab // 2], logits_LV[1, vocab - 1], logits_LV[2] = np.nan, np.inf, -np.inf
    wishes_R = np.array([wish(temperature, 0, 0, 1.0, 0.0)] * 4, WISH)
    assert ops.draw(logits_LV, np.arange(4), wishes_R, 1).tolist() == [-1, -1, -1, 0]
    assert np.isnan(ops.score(logits_LV, np.arange(4), 1, 1)[0]).tolist() == [True, True, True, False]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.05, 20), st.floats(0.001, 1), st.integers(0, 80))
def test_the_definition_keeps_the_tokens_that_a_full_sort_in_float64_keeps(seed, temperature, top_p, top_k):
    """And draws them as often as they are likely: at the middle of each token's part, that token."""
    rng = np.random.default_rng(seed)
    logits_V = (rng.standard_normal(60) * 3).astype(np.float32)
    scaled = (logits_V.astype(np.float64) - logits_V.max()) / temperature
    order = np.argsort(-scaled)[: top_k or None]
    chances = np.exp(scaled[order]) / np.exp(scaled[order]).sum()
    before = np.cumsum(chances) - chances
    if (np.abs(before - top_p) < 1e-5).any():
        return  # rounding decides
    kept = np.sort(order[before < top_p])
    ends = np.cumsum(np.exp(scaled[kept])) / np.exp(scaled[kept]).sum()
    shares = ends - np.diff(ends, prepend=0) / 2
    seen = np.diff(ends, prepend=0) > 1e-5
    wishes_R = np.array([wish(temperature, 0, top_k, top_p, share) for share in shares[seen]], WISH)
    tokens = REFERENCE.draw(logits_V[None], np.zeros(len(wishes_R), np.int64), wishes_R, 1)
    assert tokens.tolist() == kept[seen].tolist()


def test_weights_are_exponentials():
    y = np.linspace(-28, 0, 100_001).astype(np.float32)
    p, n = exponential(y)
    assert np.abs(p * np.exp2(n.astype(np.float64)) / np.exp(y.astype(np.float64)) - 1).max() < 3e-7
    largest, totals, _ = REFERENCE.score(np.zeros((1, 7), np.float32), np.zeros(1, np.int64), 0, 1)
    assert (largest[0], totals[0]) == (0, 7 << UNIT)
    assert math.log2(totals[0] / 7) == UNIT
