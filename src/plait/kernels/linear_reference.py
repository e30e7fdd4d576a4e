"""Torch references of linear layers on packed bf16, int8 and int4 weights: oracles and fallbacks.

Legend: T tokens, N outputs, I inputs, G groups of inputs that share a scale.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def pack_bf16(weights_NI: list[Tensor]) -> Tensor:
    """Stack bf16 weights in the layout that `linear_bf16` reads: here [N, I], a copy."""
    return torch.cat(weights_NI)


def pack_int8(codes_NI: list[Tensor]) -> Tensor:
    """Stack int8 weights in the layout that `linear_int8` reads: here [N, I], a copy."""
    return torch.cat(codes_NI)


def pack_int4(codes_NI: list[Tensor]) -> Tensor:
    """Stack int4 weights (int8 tensors of -8 to 7) for `linear_int4`: here [N, I], a copy."""
    return torch.cat(codes_NI)


def pack_scales(scales_NG: Tensor) -> Tensor:
    """Scales in the layout that goes with the packed weights: here [N, G], a copy."""
    return scales_NG.clone()


def linear_bf16(
    x_TI: Tensor, packed: Tensor, bias_N: Tensor | None, outputs: int, wide: bool, threads: int
) -> Tensor:
    """`x @ weight.T + bias`, summed in float32.

    Args:
        x_TI: bf16.
        packed: what `pack_bf16` made of the weights.
        bias_N: float32.
        outputs: N.
        wide: give float32, else the sum rounded to bf16.
        threads: ignored here.
    """
    return _linear(x_TI, packed.float(), bias_N, outputs, wide)


def pack_gated(gate_NI: Tensor, up_NI: Tensor) -> Tensor:
    """The bf16 weights of a gated layer in the layout that `gated_bf16` reads: here [2 N, I], a copy."""
    return torch.cat([gate_NI, up_NI])


def gated_bf16(x_TI: Tensor, packed: Tensor, width: int, threads: int) -> Tensor:
    """`silu(x @ gate.T) * (x @ up.T)`, each part rounded to bf16.

    Args:
        x_TI: bf16.
        packed: what `pack_gated` made of the weights.
        width: N.
        threads: ignored here.
    """
    gate_TN, up_TN = _linear(x_TI, packed.float(), None, 2 * width, False).chunk(2, -1)
    return F.silu(gate_TN) * up_TN


def gated_halves(x_TI: Tensor, packed: Tensor, width: int, threads: int) -> Tensor:
    """`x @ gate.T` and `x @ up.T` as they are before the activation: float32 [T, 2, N].

    Args:
        x_TI: bf16.
        packed: what `pack_gated` made of the weights.
        width: N.
        threads: ignored here.
    """
    return _linear(x_TI, packed.float(), None, 2 * width, True).unflatten(1, (2, width))


def linear_int8(
    x_TI: Tensor,
    packed: Tensor,
    scales: Tensor,
    bias_N: Tensor | None,
    outputs: int,
    wide: bool,
    threads: int,
) -> Tensor:
    """`x @ (codes * scale).T + bias` with one scale an output: `pack_scales` of [N, 1]."""
    return _linear(x_TI, packed.float() * scales.float(), bias_N, outputs, wide)


def linear_int4(
    x_TI: Tensor,
    packed: Tensor,
    scales: Tensor,
    bias_N: Tensor | None,
    outputs: int,
    group: int,
    wide: bool,
    threads: int,
) -> Tensor:
    """`x @ (codes * scale).T + bias` with one scale for each `group` inputs: `pack_scales` of [N, G]."""
    scales_NI = scales.float().repeat_interleave(group, 1)[:, : packed.shape[1]]
    return _linear(x_TI, packed.float() * scales_NI, bias_N, outputs, wide)


def _linear(x_TI: Tensor, weight_NI: Tensor, bias_N: Tensor | None, outputs: int, wide: bool) -> Tensor:
    assert weight_NI.shape[0] == outputs
    out_TN = x_TI.float() @ weight_NI.T
    if bias_N is not None:
        out_TN += bias_N
    return out_TN if wide else out_TN.bfloat16()
