"""Prepared elementwise work equals torch's ops on any strides, broadcasts and types."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.kernels.choice import choose
from plait.kernels.elementwise import Map, gather_work, layer_norm_work, map_work, mean_work

pytestmark = pytest.mark.skipif(choose().native is None, reason="native kernels are not built")
UNARY = {
    Map.COPY: lambda x: x,
    Map.NEG: torch.neg,
    Map.SQUARE: torch.square,
    Map.RSQRT: lambda x: torch.rsqrt(x.abs() + 0.1),
    Map.SILU: F.silu,
    Map.GELU: F.gelu,
    Map.GELU_TANH: lambda x: F.gelu(x, approximate="tanh"),
    Map.RELU: F.relu,
    Map.SIGMOID: torch.sigmoid,
    Map.TANH: torch.tanh,
}
BINARY = {Map.ADD: torch.add, Map.MUL: torch.mul, Map.SUB: torch.sub, Map.DIV: torch.div}
TYPES = st.sampled_from([torch.float32, torch.bfloat16])
SHAPES = st.lists(st.integers(1, 5), min_size=0, max_size=3).flatmap(
    lambda outer: st.integers(1, 600).map(lambda inner: (*outer, inner))
)


def tensor(shape, dtype, permuted):
    """Random numbers; `permuted`: with the last two dimensions swapped in memory, and gaps."""
    if permuted and len(shape) > 1:
        return torch.randn(*shape[:-2], shape[-1], 2 * shape[-2]).to(dtype)[..., ::2].transpose(-1, -2)
    return torch.randn(shape).to(dtype)


def close(ours, theirs):
    slack = 1e-6 if ours.dtype == torch.float32 else 1e-2
    torch.testing.assert_close(ours.float(), theirs.float(), rtol=slack, atol=slack)


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(sorted(UNARY)), SHAPES, TYPES, st.booleans(), st.sampled_from([1, 2]))
def test_one_argument(kind, shape, dtype, permuted, threads):
    a = tensor(shape, dtype, permuted)
    a = a.abs() + 0.1 if kind is Map.RSQRT else a
    out = torch.full(shape, torch.nan, dtype=dtype)
    map_work(kind, out, a, threads=threads)()
    want = torch.rsqrt(a) if kind is Map.RSQRT else UNARY[kind](a)
    close(out, want)


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(sorted(BINARY)), SHAPES, TYPES, TYPES, st.booleans(), st.data())
def test_two_arguments(kind, shape, one, other, permuted, data):
    thin = tuple(data.draw(st.sampled_from([1, n])) for n in shape)
    a, b = tensor(shape, one, permuted), tensor(thin, other, False)
    b = b.abs() + 0.5 if kind is Map.DIV else b
    want = BINARY[kind](a, b)
    out = torch.full(shape, torch.nan, dtype=want.dtype)
    map_work(kind, out, a, b)()
    close(out, want)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 700), TYPES)
def test_mean_and_layer_norm(rows, n, dtype):
    a, weight, bias = torch.randn(rows, n).to(dtype), torch.randn(n).to(dtype), torch.randn(n).to(dtype)
    mean, normed = torch.full((rows, 1), torch.nan).to(dtype), torch.full_like(a, torch.nan)
    mean_work(mean, a)()
    layer_norm_work(normed, a, weight, bias, 1e-5)()
    torch.testing.assert_close(
        mean, a.mean(-1, keepdim=True), rtol=1e-2, atol=1e-5 if dtype == torch.float32 else 1e-2
    )
    slack = 1e-4 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(normed, F.layer_norm(a, (n,), weight, bias), rtol=slack, atol=slack)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=9), st.integers(1, 40), TYPES)
def test_gather(indices, width, dtype):
    table = torch.randn(7, width).to(dtype)
    out = torch.full((len(indices), width), torch.nan, dtype=dtype)
    at = torch.tensor(indices)
    gather_work(out, table, at)()
    assert torch.equal(out, table[at])
