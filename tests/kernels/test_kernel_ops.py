"""Linear kernels of this CPU against the torch references, on random shapes and poisoned memory."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.kernels import ops, reference
from plait.kernels.choice import choose

KERNELS = choose()
needs_native = pytest.mark.skipif(KERNELS.native is None, reason=f"no native kernels: {KERNELS.why}")


@st.composite
def products(draw):
    """(x, weights to stack, bias)."""
    torch.manual_seed(draw(st.integers(0, 2**32)))
    tokens, inputs = draw(st.integers(0, 30)), draw(st.integers(1, 90))
    outputs = draw(st.lists(st.integers(1, 80), min_size=1, max_size=3))
    weights = [torch.randn(n, inputs) for n in outputs]
    bias = torch.randn(sum(outputs)) if draw(st.booleans()) else None
    return torch.randn(tokens, inputs + 3)[:, :inputs], weights, bias


@needs_native
@settings(max_examples=80, deadline=None)
@given(products(), st.sampled_from(KERNELS.native.isas() if KERNELS.native else [""]))
def test_linear_equals_the_reference(product, isa):
    from plait.kernels import native

    x, weights, bias = product
    outputs = sum(len(weight) for weight in weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "_ISA", isa)
        packed = native.pack(weights)
        one = native.linear(x, packed, bias, outputs, 1)
        two = native.linear(x, packed, bias, outputs, 2)
    assert torch.equal(one, two)
    want = reference.linear(x, reference.pack(weights), bias, outputs, 1)
    torch.testing.assert_close(one, want, rtol=1e-4, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(products())
def test_a_token_does_not_see_its_batch(product):
    x, weights, bias = product
    packed, outputs = ops.pack(weights), sum(len(weight) for weight in weights)
    whole = ops.linear(x, packed, bias, outputs, 1)
    for t in range(len(x)):
        assert torch.equal(ops.linear(x[t : t + 1].clone(), packed, bias, outputs, 1)[0], whole[t])
