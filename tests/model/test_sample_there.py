"""Drawing many rows at once gives the tokens that drawing each on the host gives."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.model.sample import draw
from plait.model.sample_there import draw_rows, drawable
from plait.spec.sampling import SamplingParams

WISHES = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.1, 0.7, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 3, 40, 10**6]),
    top_p=st.sampled_from([0.1, 0.5, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.5]),
    seed=st.integers(0, 2**40),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(WISHES, min_size=1, max_size=6), st.integers(0, 2**32), st.booleans())
def test_the_tokens_are_those_of_the_host(wishes, seed, ties):
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal((len(wishes), 700)) * 4).astype(np.float32)
    if ties:
        logits = logits.round()
    tokens = [np.zeros(int(n), np.int32) for n in rng.integers(1, 50, len(wishes))]
    want = [draw(row, p, t, 1, ()) for row, p, t in zip(logits, wishes, tokens, strict=True)]
    assert all(drawable(p) for p in wishes)
    assert draw_rows(torch.from_numpy(logits), wishes, [len(t) for t in tokens]) == want


@pytest.mark.parametrize(
    "wish",
    [
        *({"temperature": 0.0}, {"logprobs": 1}, {"prompt_logprobs": 0}, {"min_tokens": 2}),
        *({"presence_penalty": 0.5}, {"frequency_penalty": 0.5}, {"repetition_penalty": 1.1}),
        *({"logit_bias": ((1, 2.0),)}, {"allowed_token_ids": (3,)}),
    ],
)
def test_other_wishes_are_left_to_the_host(wish):
    assert not drawable(SamplingParams(**({"temperature": 1.0} | wish)))
