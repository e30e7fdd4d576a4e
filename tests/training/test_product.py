"""Products by oneDNN are those of torch, whatever the strides; without a rounding they have the same bits."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.training.late import LateWeights
from plait.training.product import WORTH, product, wide

needs_onednn = pytest.mark.skipif(not wide(), reason="no vectors of 512 bits, or torch has no oneDNN")
SIZES = st.integers(81, 200)
"""Large enough for oneDNN to be asked."""


def drawn(shape, seed, whole):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return (4 * values).round() if whole else values


@needs_onednn
@settings(max_examples=60, deadline=None)
@given(SIZES, SIZES, SIZES, st.booleans(), st.booleans(), st.booleans(), st.integers(0, 99))
def test_a_product_is_that_of_torch(tokens, inputs, outputs, turned, biased, whole, seed):
    x_TI, weight_NI = drawn((tokens, inputs), seed, whole), drawn((outputs, inputs), seed + 1, whole)
    if turned:
        x_TI, weight_NI = x_TI.t().contiguous().t(), weight_NI.t().contiguous().t()
    bias_N = drawn((outputs,), seed + 2, whole) if biased else None
    assert tokens * inputs * outputs >= WORTH
    got = product(x_TI, weight_NI, bias_N)
    want = F.linear(x_TI, weight_NI, bias_N)
    if whole:
        assert torch.equal(got, want)
    else:
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * inputs**0.5)


@needs_onednn
@pytest.mark.parametrize("frozen", [False, True])
def test_layers_learn_what_torch_has_them_learn(frozen):
    """Layers large enough for oneDNN, in three dimensions; a frozen one passes gradients on."""
    torch.manual_seed(0)
    up, down = torch.nn.Linear(96, 256), torch.nn.Linear(256, 64, bias=False)
    layers = torch.nn.Sequential(up, torch.nn.GELU(), down)
    up.weight.requires_grad_(not frozen)
    x_BTI = torch.randn(4, 64, 96, requires_grad=True)
    assert x_BTI.numel() * 64 > WORTH
    layers(x_BTI).square().mean().backward()
    wanted = [x_BTI.grad.clone(), *(w.grad for w in layers.parameters())]
    x_BTI.grad = None
    layers.zero_grad()
    LateWeights(layers)
    layers(x_BTI).square().mean().backward()
    for got, want in zip((x_BTI.grad, *(w.grad for w in layers.parameters())), wanted, strict=True):
        assert (got is None) == (want is None)
        if want is not None:
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-7)


def test_what_is_small_or_no_float32_is_left_to_torch():
    x_TI = torch.randn(3, 5)
    assert torch.equal(product(x_TI, x_TI), x_TI @ x_TI.t())
    large = torch.randn(512, 64, dtype=torch.float64)
    assert torch.equal(product(large, large), large @ large.t())
