"""Pointwise work between the products of a layer: native ops and the torch references.

The kernels round to the tensors' type where transformers' modules do, and compute in float32 between.
Legend: T tokens, N width, H query heads, K key-value heads, D head size, F rotated part of a head; kv_BKXE
is a pool, see `plait.kernels.attention`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from plait.kernels.attention import Reference as ReferenceAttention
from plait.kernels.attention import dense, lanes_of
from plait.kernels.choice import choose
from plait.kernels.registration import register

SCHEMAS = (
    "rms_norm(Tensor x, Tensor weight, float offset, float eps, int threads) -> Tensor",
    "add_rms_norm(Tensor x, Tensor residual, Tensor weight, float offset, float eps, int threads)"
    " -> (Tensor, Tensor)",
    "silu_mul(Tensor gate, Tensor up, int threads) -> Tensor",
    "rope_store(Tensor q, Tensor k, Tensor v, Tensor cos, Tensor sin, Tensor slots, Tensor(a!) kv, "
    "int threads) -> Tensor",
)
DTYPES = (torch.float32, torch.bfloat16)


class Native:
    """The compiled ops, over addresses of tensors; signatures are those of `Reference`."""

    def __init__(self, isa: str | None = None) -> None:
        """For one instruction set of those that this CPU runs; None: the one in use."""
        choice = choose()
        assert choice.native is not None, "make this only where native kernels are in use"
        self.native, self.isa = choice.native, isa or choice.isa

    def rms_norm(self, x_TN: Tensor, weight_N: Tensor, offset: float, eps: float, threads: int) -> Tensor:
        """Root-mean-square norm of each token; see `Reference.rms_norm`."""
        return self._norm(x_TN, None, None, weight_N, offset, eps, threads)

    def add_rms_norm(
        self, x_TN: Tensor, residual_TN: Tensor, weight_N: Tensor, offset: float, eps: float, threads: int
    ) -> tuple[Tensor, Tensor]:
        """The norm of a sum, and the sum; see `Reference.add_rms_norm`."""
        sum_TN = torch.empty(x_TN.shape, dtype=x_TN.dtype)
        return self.add_rms_norm_into(x_TN, residual_TN, sum_TN, weight_N, offset, eps, threads), sum_TN

    def add_rms_norm_into(
        self,
        x_TN: Tensor,
        residual_TN: Tensor,
        sum_TN: Tensor,
        weight_N: Tensor,
        offset: float,
        eps: float,
        threads: int,
    ) -> Tensor:
        """The norm of a sum that is put into `sum_TN`."""
        for other in (residual_TN, sum_TN):
            assert other.shape == x_TN.shape and other.dtype == x_TN.dtype, "a residual like x"  # noqa: PT018
            assert other.is_contiguous(), "a dense residual"
        return self._norm(x_TN, residual_TN, sum_TN, weight_N, offset, eps, threads)

    def _norm(
        self,
        x_TN: Tensor,
        residual: Tensor | None,
        total: Tensor | None,
        weight_N: Tensor,
        offset: float,
        eps: float,
        threads: int,
    ) -> Tensor:
        assert x_TN.dtype == weight_N.dtype and x_TN.dtype in DTYPES, f"no norm in {x_TN.dtype}"  # noqa: PT018
        assert weight_N.shape == x_TN.shape[1:] and weight_N.is_contiguous(), "a weight for each column"  # noqa: PT018
        x_TN = _rows(x_TN)
        out_TN = torch.empty(x_TN.shape, dtype=x_TN.dtype)
        self.native.rms_norm(
            self.isa,
            x_TN.data_ptr(),
            x_TN.stride(0),
            0 if residual is None else residual.data_ptr(),
            0 if total is None else total.data_ptr(),
            weight_N.data_ptr(),
            offset,
            eps,
            out_TN.data_ptr(),
            *x_TN.shape,
            x_TN.dtype == torch.bfloat16,
            threads,
        )
        return out_TN

    def silu_mul(self, gate_TN: Tensor, up_TN: Tensor, threads: int) -> Tensor:
        """The gated activation of a feed-forward layer; see `Reference.silu_mul`."""
        assert gate_TN.shape == up_TN.shape, "gate and up of one shape"
        assert gate_TN.dtype == up_TN.dtype and gate_TN.dtype in DTYPES, f"no gate in {gate_TN.dtype}"  # noqa: PT018
        gate_TN, up_TN = _rows(gate_TN), _rows(up_TN)
        out_TN = torch.empty(gate_TN.shape, dtype=gate_TN.dtype)
        self.native.silu_mul(
            self.isa,
            gate_TN.data_ptr(),
            gate_TN.stride(0),
            up_TN.data_ptr(),
            up_TN.stride(0),
            out_TN.data_ptr(),
            *gate_TN.shape,
            gate_TN.dtype == torch.bfloat16,
            threads,
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
        kv_BKXE: Tensor,
        threads: int,
    ) -> Tensor:
        """Rotates queries and keys, stores keys and values; see `Reference.rope_store`."""
        tensors = (q_THD, k_TKD, v_TKD, cos_TF, sin_TF, kv_BKXE)
        assert {x.dtype for x in tensors} in ({torch.float32}, {torch.bfloat16}), "tensors of one type"
        assert slots_T.dtype == torch.int32, "slots are int32"
        tokens, heads, size = q_THD.shape
        rotated = cos_TF.shape[1]
        assert rotated % 2 == 0 and rotated <= size <= 256, "an even part of the head is rotated"  # noqa: PT018
        q_THD, k_TKD, v_TKD = dense(q_THD), dense(k_TKD), dense(v_TKD)
        cos_TF, sin_TF = cos_TF.contiguous(), sin_TF.contiguous()
        out_THD = torch.empty((tokens, heads, size), dtype=q_THD.dtype)
        self.native.rope_store(
            self.isa,
            q_THD.data_ptr(),
            k_TKD.data_ptr(),
            v_TKD.data_ptr(),
            q_THD.stride(0),
            k_TKD.stride(0),
            v_TKD.stride(0),
            cos_TF.data_ptr(),
            sin_TF.data_ptr(),
            slots_T.data_ptr(),
            out_THD.data_ptr(),
            kv_BKXE.data_ptr(),
            tokens,
            heads,
            k_TKD.shape[1],
            size,
            rotated,
            lanes_of(kv_BKXE, size),
            q_THD.dtype == torch.bfloat16,
            threads,
        )
        return out_THD


class Reference:
    """The same ops in torch: oracle and fallback."""

    def rms_norm(self, x_TN: Tensor, weight_N: Tensor, offset: float, eps: float, threads: int) -> Tensor:
        """`x / sqrt(mean(x^2) + eps) * (weight + offset)` of each token, in float32.

        Args:
            offset: 1 where a model's weights are kept less 1, else 0.
            threads: ignored here.
        """
        x_TN_float = x_TN.float()
        scaled = x_TN_float * torch.rsqrt(x_TN_float.square().mean(-1, keepdim=True) + eps)
        if offset == 0:
            scaled = scaled.to(x_TN.dtype).float()  # as most families do; Gemma's multiply in float32
        return (scaled * (weight_N.float() + offset)).to(x_TN.dtype)

    def add_rms_norm(
        self, x_TN: Tensor, residual_TN: Tensor, weight_N: Tensor, offset: float, eps: float, threads: int
    ) -> tuple[Tensor, Tensor]:
        """The norm of the sum of x and residual, and the sum."""
        sum_TN = residual_TN + x_TN
        return self.rms_norm(sum_TN, weight_N, offset, eps, threads), sum_TN

    def silu_mul(self, gate_TN: Tensor, up_TN: Tensor, threads: int) -> Tensor:
        """`silu(gate) * up`."""
        return F.silu(gate_TN) * up_TN

    def rope_store(
        self,
        q_THD: Tensor,
        k_TKD: Tensor,
        v_TKD: Tensor,
        cos_TF: Tensor,
        sin_TF: Tensor,
        slots_T: Tensor,
        kv_BKXE: Tensor,
        threads: int,
    ) -> Tensor:
        """Rotates the first F of each head of queries and keys, in halves, and stores keys and values.

        Args:
            slots_T: int32.
            threads: ignored here.

        Returns:
            The rotated queries [T, H, D].
        """
        ReferenceAttention().paged_store(self.turned(k_TKD, cos_TF, sin_TF), v_TKD, slots_T, kv_BKXE)
        return self.turned(q_THD, cos_TF, sin_TF)

    @staticmethod
    def turned(x_THD: Tensor, cos_TF: Tensor, sin_TF: Tensor) -> Tensor:
        """The first F of each head turned: pairs (d, d + F / 2) by their token's angles."""
        part, rest = x_THD[..., : cos_TF.shape[1]], x_THD[..., cos_TF.shape[1] :]
        one, two = part.chunk(2, -1)
        cos_T1F, sin_T1F = cos_TF[:, None], sin_TF[:, None]
        return torch.cat([part * cos_T1F + torch.cat([-two, one], -1) * sin_T1F, rest], -1)


def _rows(x_TN: Tensor) -> Tensor:
    """The same with each row dense, though rows may be apart."""
    return x_TN if x_TN.stride(1) == 1 else x_TN.contiguous()


def _chosen() -> Any:
    if choose().isa == "triton":  # under its interpreter
        from plait.kernels.triton.pointwise import Triton

        return Triton()
    return Native() if choose().native else Reference()


_OPS = _chosen()
BODIES = {name: getattr(_OPS, name) for name in (schema.partition("(")[0] for schema in SCHEMAS)}
"""Name of each op -> the function that carries it out."""
LIBRARY = register(SCHEMAS, BODIES)
"""Keeps the registration alive."""

rms_norm = torch.ops.plait.rms_norm.default
add_rms_norm = torch.ops.plait.add_rms_norm.default
silu_mul = torch.ops.plait.silu_mul.default
rope_store = torch.ops.plait.rope_store.default
