"""Triton's pointwise ops against the torch references, on strided input. Runs under the interpreter."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.kernels import attention
from plait.kernels.pointwise import Reference
from plait.kernels.triton.pointwise import Triton
from tests.kernels.test_triton_attention import pool_of_gpu

REFERENCE, TRITON = Reference(), Triton()
SLACK = {torch.float32: 2e-6, torch.bfloat16: 2e-2}
DTYPE = st.sampled_from([torch.float32, torch.bfloat16])
SEED = st.integers(0, 2**32)


def close(got, want):
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    slack = SLACK[want.dtype]
    size = float(want.float().abs().max()) if want.numel() else 1.0
    torch.testing.assert_close(got.float(), want.float(), rtol=slack, atol=slack * max(size, 1e-6))


def rows(tokens, width, dtype, size=1.0):
    """Rows that lie apart, between columns of poison."""
    wide = torch.full((tokens, width + 3), torch.nan)
    wide[:, 1 : width + 1] = torch.randn(tokens, width) * size
    return wide.to(dtype)[:, 1 : width + 1]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 5), st.sampled_from([1, 8, 64, 100, 1030]), DTYPE, SEED, st.sampled_from([0.0, 1.0]))
def test_norms(tokens, width, dtype, seed, offset):
    torch.manual_seed(seed)
    x, weight = rows(tokens, width, dtype, 3.0), torch.randn(width).to(dtype)
    want = REFERENCE.rms_norm(x, weight, offset, 1e-5, 1)
    close(TRITON.rms_norm(x, weight, offset, 1e-5, 1), want)
    residual = torch.randn(tokens, width).to(dtype)
    for got, want in zip(
        TRITON.add_rms_norm(x, residual, weight, offset, 1e-5, 1),
        REFERENCE.add_rms_norm(x, residual, weight, offset, 1e-5, 1),
        strict=True,
    ):
        close(got, want)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 4), st.sampled_from([1, 64, 1500]), DTYPE, SEED, st.sampled_from([1.0, 90.0]))
def test_gate(tokens, width, dtype, seed, size):
    torch.manual_seed(seed)
    gate, up = rows(tokens, width, dtype, size), rows(tokens, width, dtype)
    close(TRITON.silu_mul(gate, up, 1), REFERENCE.silu_mul(gate, up, 1))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 6), st.sampled_from([(2, 1), (3, 3), (4, 2)]), st.sampled_from([8, 24, 64, 80]), DTYPE,
    SEED, st.sampled_from([1, 16]), st.booleans(),
)  # fmt: skip
def test_rope_and_store(tokens, heads, size, dtype, seed, page, partly):
    torch.manual_seed(seed)
    query_heads, kv_heads = heads
    wide = torch.randn(tokens, query_heads + 2 * kv_heads, size).to(dtype)
    q, k, v = wide.split((query_heads, kv_heads, kv_heads), 1)
    rotated = size // 4 * 2 if partly else size
    cos, sin = torch.randn(tokens, rotated).to(dtype), torch.randn(tokens, rotated).to(dtype)
    slots = torch.randperm(32)[:tokens].int()
    theirs = torch.full(attention.pool_shape(32, kv_heads, size, page), torch.nan, dtype=dtype)
    ours = torch.full(attention.pool_shape(32, kv_heads, size, page, gpu=True), torch.nan, dtype=dtype)
    want = REFERENCE.rope_store(q, k, v, cos, sin, slots, theirs, 1)
    close(TRITON.rope_store(q, k, v, cos, sin, slots, ours, 1), want)
    close(ours.nan_to_num(9), pool_of_gpu(theirs, size).nan_to_num(9))
