"""Block hashes name a prompt's content from its start, and nothing less."""

from hypothesis import given
from hypothesis import strategies as st

from plait.runtime.hashing import block_hashes

tokens = st.lists(st.integers(0, 200_000), max_size=60)


@given(tokens, tokens, st.integers(1, 7))
def test_equal_exactly_as_far_as_the_prefixes_are(left, right, block):
    a, b = block_hashes(left, block, "s"), block_hashes(right, block, "s")
    assert len(a) == len(left) // block
    for number, (one, other) in enumerate(zip(a, b, strict=False)):
        same = left[: (number + 1) * block] == right[: (number + 1) * block]
        assert (one == other) == same
        assert 0 <= one < 1 << 63


@given(st.lists(st.integers(0, 9), min_size=4, max_size=20))
def test_salt_keeps_models_apart(prompt):
    assert not set(block_hashes(prompt, 2, "one")) & set(block_hashes(prompt, 2, "two"))
