"""Pointwise work on a GPU: the ops of `plait.kernels.pointwise`, in float32 and rounded where those are."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from plait.kernels.triton.attention import side_by_side
from plait.kernels.triton.pool import launch_sizes, pool_offset

DTYPES = (torch.float32, torch.bfloat16)
GATE_BLOCK = 1024
"""Columns that a program of `silu_mul` takes."""


@triton.jit
def norm_kernel(
    x, residual, total, weight, out, x_stride, offset, eps,
    ADDS: tl.constexpr, N: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program a token."""
    t = tl.program_id(0).to(tl.int64)
    at_N = tl.arange(0, BLOCK_N)
    inside_N = at_N < N
    x_N = tl.load(x + t * x_stride + at_N, mask=inside_N, other=0.0).to(tl.float32)
    if ADDS:
        x_N += tl.load(residual + t * N + at_N, mask=inside_N, other=0.0).to(tl.float32)
        # The norm is of the sum as memory keeps it.
        sum_N = x_N.to(total.dtype.element_ty)
        tl.store(total + t * N + at_N, sum_N, mask=inside_N)
        x_N = sum_N.to(tl.float32)
    shrink = 1 / tl.sqrt(tl.sum(x_N * x_N, 0) / N + eps)
    weight_N = tl.load(weight + at_N, mask=inside_N, other=0.0).to(tl.float32) + offset
    x_N *= shrink
    if offset == 0:
        x_N = x_N.to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + t * N + at_N, (x_N * weight_N).to(out.dtype.element_ty), mask=inside_N)


@triton.jit
def gate_kernel(gate, up, out, gate_stride, up_stride, N: tl.constexpr, BLOCK_N: tl.constexpr):
    """One program a token and block of columns."""
    t = tl.program_id(0).to(tl.int64)
    at_N = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside_N = at_N < N
    gate_N = tl.load(gate + t * gate_stride + at_N, mask=inside_N, other=0.0).to(tl.float32)
    up_N = tl.load(up + t * up_stride + at_N, mask=inside_N, other=0.0).to(tl.float32)
    small_N = tl.exp(-tl.abs(gate_N))
    open_N = tl.where(gate_N < 0, small_N, 1.0) / (1 + small_N)
    out_N = (gate_N * open_N).to(out.dtype.element_ty).to(tl.float32) * up_N
    tl.store(out + t * N + at_N, out_N.to(out.dtype.element_ty), mask=inside_N)


@triton.jit
def turn(
    x, cos, sin, to, HALF: tl.constexpr, SIZE: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_REST: tl.constexpr
):
    """Write a head with its first 2 * HALF elements rotated, in halves, and the rest as they are."""
    at_F = tl.arange(0, BLOCK_F)
    inside_F = at_F < HALF
    one_F = tl.load(x + at_F, mask=inside_F, other=0.0).to(tl.float32)
    two_F = tl.load(x + HALF + at_F, mask=inside_F, other=0.0).to(tl.float32)
    cos_F = tl.load(cos + at_F, mask=inside_F, other=0.0).to(tl.float32)
    sin_F = tl.load(sin + at_F, mask=inside_F, other=0.0).to(tl.float32)
    kind: tl.constexpr = to.dtype.element_ty
    one_cos_F, two_sin_F = (one_F * cos_F).to(kind).to(tl.float32), (two_F * sin_F).to(kind).to(tl.float32)
    tl.store(to + at_F, (one_cos_F - two_sin_F).to(kind), mask=inside_F)
    cos_F = tl.load(cos + HALF + at_F, mask=inside_F, other=0.0).to(tl.float32)
    sin_F = tl.load(sin + HALF + at_F, mask=inside_F, other=0.0).to(tl.float32)
    two_cos_F, one_sin_F = (two_F * cos_F).to(kind).to(tl.float32), (one_F * sin_F).to(kind).to(tl.float32)
    tl.store(to + HALF + at_F, (two_cos_F + one_sin_F).to(kind), mask=inside_F)
    if BLOCK_REST:
        at_R = 2 * HALF + tl.arange(0, BLOCK_REST)
        rest_R = tl.load(x + at_R, mask=at_R < SIZE, other=0.0)
        tl.store(to + at_R, rest_R.to(to.dtype.element_ty), mask=at_R < SIZE)


@triton.jit
def rope_kernel(
    q, k, v, cos, sin, slots, out, kv, q_stride, q_head_stride, k_stride, k_head_stride, v_stride,
    v_head_stride,
    HEADS: tl.constexpr, HALF: tl.constexpr, KV_HEADS: tl.constexpr, LANES: tl.constexpr,
    SIZE: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_REST: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program a token and head: the query heads, then the key-value heads."""
    t, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    cos += t * (2 * HALF)
    sin += t * (2 * HALF)
    if head < HEADS:
        to_out = out + (t * HEADS + head) * SIZE
        turn(q + t * q_stride + head * q_head_stride, cos, sin, to_out, HALF, SIZE, BLOCK_F, BLOCK_REST)
    else:
        head -= HEADS
        slot = tl.load(slots + t)
        to_keys = kv + pool_offset(slot, head, 0, KV_HEADS, LANES, SIZE)
        to_values = kv + pool_offset(slot, head, 1, KV_HEADS, LANES, SIZE)
        turn(k + t * k_stride + head * k_head_stride, cos, sin, to_keys, HALF, SIZE, BLOCK_F, BLOCK_REST)
        at_D = tl.arange(0, BLOCK_D)
        v_D = tl.load(v + t * v_stride + head * v_head_stride + at_D, mask=at_D < SIZE)
        tl.store(to_values + at_D, v_D.to(kv.dtype.element_ty), mask=at_D < SIZE)


class Triton:
    """The ops; signatures are those of `plait.kernels.pointwise.Reference`."""

    def rms_norm(self, x_TN: Tensor, weight_N: Tensor, offset: float, eps: float, threads: int) -> Tensor:
        """Root-mean-square norm of each token; see `Reference.rms_norm`."""
        return self._norm(x_TN, None, None, weight_N, offset, eps)

    def add_rms_norm(
        self, x_TN: Tensor, residual_TN: Tensor, weight_N: Tensor, offset: float, eps: float, threads: int
    ) -> tuple[Tensor, Tensor]:
        """The norm of a sum, and the sum; see `Reference.add_rms_norm`."""
        assert residual_TN.shape == x_TN.shape and residual_TN.is_contiguous(), "a dense residual like x"  # noqa: PT018
        assert residual_TN.dtype == x_TN.dtype, "x and residual of one type"
        sum_TN = torch.empty_like(residual_TN)
        return self._norm(x_TN, residual_TN, sum_TN, weight_N, offset, eps), sum_TN

    def _norm(
        self,
        x_TN: Tensor,
        residual: Tensor | None,
        total: Tensor | None,
        weight_N: Tensor,
        offset: float,
        eps: float,
    ) -> Tensor:
        assert x_TN.dtype == weight_N.dtype and x_TN.dtype in DTYPES, f"no norm in {x_TN.dtype}"  # noqa: PT018
        assert weight_N.shape == x_TN.shape[1:] and weight_N.is_contiguous(), "a weight for each column"  # noqa: PT018
        x_TN = _rows(x_TN)
        out_TN = torch.empty(x_TN.shape, dtype=x_TN.dtype, device=x_TN.device)
        tokens, width = x_TN.shape
        if tokens:
            block = triton.next_power_of_2(width)
            norm_kernel[(tokens,)](
                x_TN, out_TN if residual is None else residual, out_TN if total is None else total, weight_N,
                out_TN, x_TN.stride(0), offset, eps,
                ADDS=residual is not None, N=width, BLOCK_N=block, num_warps=min(16, max(1, block // 512)),
            )  # fmt: skip
        return out_TN

    def silu_mul(self, gate_TN: Tensor, up_TN: Tensor, threads: int) -> Tensor:
        """The gated activation of a feed-forward layer; see `Reference.silu_mul`."""
        assert gate_TN.shape == up_TN.shape, "gate and up of one shape"
        assert gate_TN.dtype == up_TN.dtype and gate_TN.dtype in DTYPES, f"no gate in {gate_TN.dtype}"  # noqa: PT018
        gate_TN, up_TN = _rows(gate_TN), _rows(up_TN)
        out_TN = torch.empty(gate_TN.shape, dtype=gate_TN.dtype, device=gate_TN.device)
        tokens, width = gate_TN.shape
        if tokens and width:
            gate_kernel[(tokens, triton.cdiv(width, GATE_BLOCK))](
                gate_TN, up_TN, out_TN, gate_TN.stride(0), up_TN.stride(0), N=width, BLOCK_N=GATE_BLOCK
            )
        return out_TN

    def rope_store(
        self,
        q_THD: Tensor,
        k_TKD: Tensor,
        v_TKD: Tensor,
        cos_TF: Tensor,
        sin_TF: Tensor,
        slots_T: Tensor,
        kv_BKXLD: Tensor,
        threads: int,
    ) -> Tensor:
        """Rotates queries and keys, stores keys and values; see `Reference.rope_store`."""
        tensors = (q_THD, k_TKD, v_TKD, cos_TF, sin_TF, kv_BKXLD)
        assert {x.dtype for x in tensors} in ({torch.float32}, {torch.bfloat16}), "tensors of one type"
        assert slots_T.dtype == torch.int32, "slots are int32"
        tokens, heads, size = q_THD.shape
        rotated = cos_TF.shape[1]
        assert rotated % 2 == 0 and 0 < rotated <= size <= 256, "an even part of the head is rotated"  # noqa: PT018
        out_THD = torch.empty((tokens, heads, size), dtype=q_THD.dtype, device=q_THD.device)
        if not tokens:
            return out_THD
        q_THD, k_TKD, v_TKD = side_by_side(q_THD), side_by_side(k_TKD), side_by_side(v_TKD)
        strides = [stride for x_THD in (q_THD, k_TKD, v_TKD) for stride in x_THD.stride()[:2]]
        rope_kernel[(tokens, heads + k_TKD.shape[1])](
            q_THD, k_TKD, v_TKD, cos_TF.contiguous(), sin_TF.contiguous(), slots_T, out_THD, kv_BKXLD,
            *strides, HEADS=heads, HALF=rotated // 2, **launch_sizes(kv_BKXLD, size),
            BLOCK_F=triton.next_power_of_2(rotated // 2),
            BLOCK_REST=triton.next_power_of_2(size - rotated) if rotated < size else 0,
            BLOCK_D=triton.next_power_of_2(size), num_warps=1,
        )  # fmt: skip
        return out_THD


def _rows(x_TN: Tensor) -> Tensor:
    """The same with each row dense, though rows may be apart."""
    return x_TN if x_TN.stride(1) == 1 else x_TN.contiguous()
