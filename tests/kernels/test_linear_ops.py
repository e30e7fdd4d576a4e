"""Linear layers on packed weights against the torch references: random shapes, strides and formats."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from plait.kernels import linear_reference, ops
from plait.kernels.choice import choose

KERNELS = choose()
SETS = KERNELS.native.isas() if KERNELS.native else [""]
TINY = 1e-30
"""What a gate that is shut leaves instead of zero."""
needs_native = pytest.mark.skipif(KERNELS.native is None, reason=f"no native kernels: {KERNELS.why}")


@st.composite
def cases(draw):
    """(x [T, I] among poison, sizes of stacked weights, bias or None, wide)."""
    torch.manual_seed(draw(st.integers(0, 2**32)))
    tokens = draw(st.one_of(st.integers(0, 20), st.sampled_from([33, 100, 240])))
    inputs = draw(st.one_of(st.integers(1, 300), st.sampled_from([576, 4099])))
    outputs = draw(st.lists(st.integers(1, 80), min_size=1, max_size=3))
    poisoned = torch.full((tokens, inputs + 5), torch.nan, dtype=torch.bfloat16)
    x_TI = poisoned[:, 2 : 2 + inputs]
    x_TI.copy_(torch.randn(tokens, inputs) * 10 ** torch.randn(1, inputs))
    if draw(st.booleans()):  # columns apart instead of rows
        x_TI = x_TI.t().contiguous().t()
    bias_N = torch.randn(sum(outputs)) if draw(st.booleans()) else None
    return x_TI, outputs, bias_N, draw(st.booleans())


def quantised(outputs: list[int], inputs: int, group: int, largest: int) -> tuple[list[Tensor], Tensor]:
    """Random codes of stacked weights and their scales [N, G]."""
    codes = [torch.randint(-largest - 1, largest + 1, (n, inputs), dtype=torch.int8) for n in outputs]
    return codes, torch.rand(sum(outputs), math.ceil(inputs / group)) + 0.1


def native_result(isa: str, threads: int, name: str, *arguments) -> Tensor:
    """What a native op gives, into memory that held no numbers."""
    from plait.kernels import linear

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "_ISA", isa)
        patch.setattr(torch, "empty", lambda *a, **k: torch.full(*a, torch.nan, **k))
        return getattr(linear, name)(*arguments, threads)


def check(isa: str, x_TI: Tensor, name: str, theirs: tuple, ours: tuple, roundings: int = 1) -> None:
    """One and two threads give the same bits, near the reference's numbers."""
    one, two = (native_result(isa, threads, name, x_TI, *ours) for threads in (1, 2))
    assert torch.equal(one, two)
    want = getattr(linear_reference, name)(x_TI, *theirs, 1)
    assert one.dtype == want.dtype
    assert one.shape == want.shape
    if want.numel():
        # A sum's error is a share of the largest, not of what is left after things cancel out.
        assert (one.float() - want.float()).abs().max() <= roundings * 1e-2 * want.float().abs().max() + TINY
        # Over many sums it averages out; of a few, one rounding to bf16 (2 ** -7) may be all there is.
        share = roundings * (4e-3 if want.numel() >= 64 else 2**-7)
        assert (one.float() - want.float()).norm() <= share * want.float().norm() + TINY


@needs_native
@settings(max_examples=80, deadline=None)
@given(cases(), st.sampled_from(SETS))
def test_bf16_equals_the_reference(case, isa):
    from plait.kernels import linear

    x_TI, outputs, bias_N, wide = case
    weights = [torch.randn(n, x_TI.shape[1]).bfloat16() for n in outputs]
    rest = (bias_N, sum(outputs), wide)
    theirs, ours = linear_reference.pack_bf16(weights), linear.pack_bf16(weights)
    check(isa, x_TI, "linear_bf16", (theirs, *rest), (ours, *rest))


@needs_native
@settings(max_examples=80, deadline=None)
@given(cases(), st.sampled_from(SETS))
def test_a_gated_layer_equals_the_reference(case, isa):
    from plait.kernels import linear

    x_TI, (width, *_), _, _ = case
    gate_NI, up_NI = (torch.randn(width, x_TI.shape[1]).bfloat16() for _ in range(2))
    theirs, ours = linear_reference.pack_gated(gate_NI, up_NI), linear.pack_gated(gate_NI, up_NI)
    check(isa, x_TI, "gated_bf16", (theirs, width), (ours, width), roundings=4)
    check(isa, x_TI, "gated_halves", (theirs, width), (ours, width))


@needs_native
@settings(max_examples=80, deadline=None)
@given(cases(), st.sampled_from(SETS), st.sampled_from([torch.float32, torch.bfloat16]))
def test_int8_equals_the_reference(case, isa, scale_type):
    from plait.kernels import linear

    x_TI, outputs, bias_N, wide = case
    codes, scales_NG = quantised(outputs, x_TI.shape[1], x_TI.shape[1], 127)
    scales_NG, rest = scales_NG.to(scale_type), (bias_N, sum(outputs), wide)
    theirs = (linear_reference.pack_int8(codes), linear_reference.pack_scales(scales_NG))
    ours = (linear.pack_int8(codes), linear.pack_scales(scales_NG))
    check(isa, x_TI, "linear_int8", (*theirs, *rest), (*ours, *rest))


@needs_native
@settings(max_examples=80, deadline=None)
@given(
    cases(),
    st.sampled_from(SETS),
    st.sampled_from([32, 64, 128]),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_int4_equals_the_reference(case, isa, group, scale_type):
    from plait.kernels import linear

    x_TI, outputs, bias_N, wide = case
    codes, scales_NG = quantised(outputs, x_TI.shape[1], group, 7)
    scales_NG, rest = scales_NG.to(scale_type), (bias_N, sum(outputs), group, wide)
    theirs = (linear_reference.pack_int4(codes), linear_reference.pack_scales(scales_NG))
    ours = (linear.pack_int4(codes), linear.pack_scales(scales_NG))
    check(isa, x_TI, "linear_int4", (*theirs, *rest), (*ours, *rest))


@needs_native
@pytest.mark.parametrize("isa", SETS)
def test_int8_loses_nothing_to_an_activation_that_dwarfs_the_others(isa):
    """One input of 1,000 times the others' size spoils neither tokens nor the other inputs' share."""
    from plait.kernels import linear

    torch.manual_seed(0)
    x_TI = torch.randn(3, 512).bfloat16()
    x_TI[:, 7] = 1000
    codes = [torch.randint(-127, 128, (64, 512), dtype=torch.int8)]
    codes[0][:, 7] = 0
    scales = torch.rand(64, 1)
    packed, packed_scales = linear.pack_int8(codes), linear.pack_scales(scales)
    ours = native_result(isa, 1, "linear_int8", x_TI, packed, packed_scales, None, 64, True)
    want = linear_reference.linear_int8(x_TI, codes[0], scales, None, 64, True, 1)
    assert (ours - want).norm() <= 1e-2 * want.norm()


@needs_native
@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_what_is_not_a_number_stays_in_its_token(isa, poison):
    from plait.kernels import linear

    x_TI = torch.ones(3, 70).bfloat16()
    x_TI[1, 69] = poison
    codes = [torch.ones(5, 70, dtype=torch.int8)]
    ones = linear.pack_scales(torch.ones(5, 1))
    for name, arguments in (
        ("linear_bf16", (linear.pack_bf16([codes[0].bfloat16()]), None, 5, True)),
        ("linear_int8", (linear.pack_int8(codes), ones, None, 5, True)),
        ("linear_int4", (linear.pack_int4(codes), ones, None, 5, 128, True)),
    ):
        ours = native_result(isa, 1, name, x_TI, *arguments)
        assert not ours[1].isfinite().any()
        torch.testing.assert_close(ours[[0, 2]], torch.full((2, 5), 70.0), rtol=1e-4, atol=0)


@needs_native
@settings(max_examples=40, deadline=None)
@given(cases(), st.sampled_from(SETS))
def test_a_token_of_packed_weights_does_not_see_its_batch(case, isa):
    from plait.kernels import linear

    x_TI, outputs, bias_N, wide = case
    weights = [torch.randn(n, x_TI.shape[1]).bfloat16() for n in outputs]
    rest = (linear.pack_bf16(weights), bias_N, sum(outputs), wide)
    whole = native_result(isa, 2, "linear_bf16", x_TI, *rest)
    for t in range(0, len(x_TI), 7):
        assert torch.equal(native_result(isa, 1, "linear_bf16", x_TI[t : t + 1].clone(), *rest)[0], whole[t])


def test_registered_ops_take_and_give_what_the_references_do():
    x_TI, weight = torch.randn(4, 33).bfloat16(), torch.randn(7, 33).bfloat16()
    ours = ops.linear_bf16(x_TI, ops.pack_bf16([weight]), torch.ones(7), 7, True, 1)
    torch.testing.assert_close(ours, x_TI.float() @ weight.float().T + 1, rtol=1e-4, atol=1e-4)
    codes, scales = [torch.randint(-7, 8, (7, 33), dtype=torch.int8)], torch.rand(7, 2)
    whole = ops.pack_scales(scales[:, :1].contiguous())
    wide = ops.linear_int8(x_TI, ops.pack_int8(codes), whole, None, 7, True, 1)
    want = x_TI.float() @ (codes[0] * scales[:, :1]).T
    assert (wide - want).abs().max() <= 1e-2 * want.abs().max()
    grouped = ops.linear_int4(x_TI, ops.pack_int4(codes), ops.pack_scales(scales), None, 7, 32, False, 1)
    assert grouped.dtype == torch.bfloat16
