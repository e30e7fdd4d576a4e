"""Drawing many rows at once gives the tokens that drawing each on the host gives."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.model import sample, sample_there
from plait.model.sample import Round, Turn
from plait.spec.sampling import SamplingParams

WISHES = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.1, 0.7, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 3, 40, 10**6]),
    top_p=st.sampled_from([0.1, 0.5, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.5]),
    presence_penalty=st.sampled_from([0.0, 0.0, 0.0, 0.5]),
    seed=st.integers(0, 2**40),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(WISHES, min_size=1, max_size=6), st.integers(0, 2**32), st.booleans(), st.integers(2, 700))
def test_the_tokens_are_those_of_the_host(wishes, seed, ties, vocab):
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal((len(wishes) + 2, vocab)) * 4).astype(np.float32)
    if ties:
        logits = logits.round()
    places = rng.permutation(len(logits))
    rows = [Turn(params, np.zeros(int(rng.integers(1, 50)), np.int32), 1, ()) for params in wishes]
    turns = Round.of(places[: len(rows)].tolist(), rows)
    want = sample.draw_rows(logits, turns, 1)
    assert sample_there.draw_rows(torch.from_numpy(logits), turns, 1).tolist() == want.tolist()


def test_logits_that_are_not_finite_are_told():
    turns = [Turn(SamplingParams(temperature=t), np.zeros(1, np.int32), 1, ()) for t in (0.0, 1.0)]
    for bad in (np.nan, np.inf):
        logits = torch.zeros(1, 9)
        logits[0, 3] = bad
        for turn in turns:
            with pytest.raises(AssertionError, match="finite"):
                sample_there.draw_rows(logits, Round.of([0], [turn]), 1)
