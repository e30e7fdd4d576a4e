"""Torch references of the linear ops: the oracle of the native kernels and their fallback. Slow and exact.

Each token is computed alone, so that no batch changes a bit.
Legend: T tokens, N outputs, I inputs.
"""

import torch
from torch import Tensor


def pack(weights_NI: list[Tensor]) -> Tensor:
    """Stack weights in the layout that `linear` reads: here [N, I], a copy."""
    return torch.cat(weights_NI)


def linear(x_TI: Tensor, packed: Tensor, bias_N: Tensor | None, outputs: int, threads: int) -> Tensor:
    """`x @ weight.T + bias` in float32, one token at a time, so that no other token changes a bit.

    Args:
        packed: what `pack` made of the weight.
        outputs: N.
        threads: ignored here.
    """
    assert packed.shape[0] == outputs
    out_TN = torch.empty((x_TI.shape[0], outputs))
    for t in range(x_TI.shape[0]):
        # A fresh copy is aligned as every other token's: a matrix-vector product may look at that.
        torch.mv(packed, x_TI[t].clone(), out=out_TN[t])
    return out_TN if bias_N is None else out_TN.add_(bias_N)
