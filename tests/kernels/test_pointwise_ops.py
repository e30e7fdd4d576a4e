"""Pointwise kernels of every instruction set against the torch references."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.kernels import attention, pointwise
from plait.kernels.choice import choose
from plait.kernels.pointwise import Native, Reference

REFERENCE = Reference()
ISAS = choose().native.isas() if choose().native else []
pytestmark = pytest.mark.skipif(not ISAS, reason="no native kernels")
SLACK = {torch.float32: 1e-6, torch.bfloat16: 1e-2}
DTYPES = st.sampled_from(list(SLACK))
SEEDS = st.integers(0, 2**32)


def close(got, want):
    """Equal up to a share of the largest value."""
    assert got.dtype == want.dtype
    slack = SLACK[got.dtype]
    size = max(1.0, float(want.float().abs().max())) if want.numel() else 1.0
    torch.testing.assert_close(got.float(), want.float(), rtol=slack, atol=slack * size)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 9),
    st.integers(1, 200),
    SEEDS,
    DTYPES,
    st.sampled_from([0.0, 1.0]),
    st.sampled_from(ISAS or [""]),
)
def test_norms_equal_the_reference_and_no_token_sees_another(tokens, width, seed, dtype, offset, isa):
    torch.manual_seed(seed)
    native = Native(isa)
    x = torch.randn(tokens, width + 5).to(dtype)[:, :width]
    residual, weight = torch.randn(tokens, width).to(dtype), torch.randn(width).to(dtype)
    got = native.rms_norm(x, weight, offset, 1e-5, 2)
    close(got, REFERENCE.rms_norm(x, weight, offset, 1e-5, 1))
    for t in range(tokens):
        assert torch.equal(native.rms_norm(x[t : t + 1].clone(), weight, offset, 1e-5, 1)[0], got[t])
    got, total = native.add_rms_norm(x, residual, weight, offset, 1e-5, 2)
    want, wanted_total = REFERENCE.add_rms_norm(x, residual, weight, offset, 1e-5, 1)
    close(got, want)
    assert torch.equal(total, wanted_total)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 9), st.integers(1, 200), SEEDS, DTYPES, st.sampled_from(ISAS or [""]))
def test_the_gate_equals_the_reference(tokens, width, seed, dtype, isa):
    torch.manual_seed(seed)
    both = (torch.randn(tokens, 2 * width + 3) * 20).to(dtype)
    gate, up = both[:, :width], both[:, width : 2 * width]
    got = Native(isa).silu_mul(gate, up, 2)
    close(got, REFERENCE.silu_mul(gate, up, 1))
    for t in range(tokens):
        assert torch.equal(Native(isa).silu_mul(gate[t : t + 1].clone(), up[t : t + 1].clone(), 1)[0], got[t])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 20), SEEDS, DTYPES, st.sampled_from([1, 16]), st.sampled_from([8, 24, 64, 128]),
    st.booleans(), st.sampled_from(ISAS or [""]),
)  # fmt: skip
def test_rotated_keys_are_stored_where_they_belong(tokens, seed, dtype, page, size, partly, isa):
    torch.manual_seed(seed)
    wide = torch.randn(tokens, 10, size).to(dtype)
    q, k, v = wide[:, :6], wide[:, 6:8], wide[:, 8:]
    angles = torch.rand(tokens, (size // 4 if partly else size // 2)).repeat(1, 2) * 7
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    slots = torch.randperm(32)[:tokens].int()
    pools = [torch.full(attention.pool_shape(32, 2, size, page), torch.nan, dtype=dtype) for _ in range(2)]
    got = Native(isa).rope_store(q, k, v, cos, sin, slots, pools[0], 2)
    want = REFERENCE.rope_store(q, k, v, cos, sin, slots, pools[1], 1)
    close(got, want)
    close(pools[0].nan_to_num(0.5), pools[1].nan_to_num(0.5))
    assert torch.equal(pools[0].isnan(), pools[1].isnan())


def test_the_registered_ops_are_the_native_ones():
    x, weight = torch.randn(3, 32), torch.randn(32)
    assert torch.equal(
        pointwise.rms_norm(x, weight, 0.0, 1e-6, 1), Native().rms_norm(x, weight, 0.0, 1e-6, 1)
    )
