"""`product`: `x @ weight.T + bias` in float32 on a CPU, by the faster of the two libraries that torch brings.

torch leaves float32 to MKL, which uses no vectors of 512 bits on a CPU that is not Intel's. oneDNN, to
which torch leaves other types, does: on a core of an AMD EPYC of 2024 it makes 220 thousand million
operations a second, and MKL 100. Which one is asked follows from the CPU and the sizes alone, so the same
step has the same bits again.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

WORTH = 1 << 19
"""Multiplications from which on oneDNN is asked: what it does before it begins costs some microseconds."""


@cache
def wide() -> bool:
    """There are vectors of 512 bits, and a oneDNN to use them."""
    has = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return has and torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def product(x: Tensor, weight_NI: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """[..., N] of x [..., I]; no graph is kept. Other types than float32 and other devices go to torch."""
    size = x.numel() * len(weight_NI)
    mine = x.dtype == weight_NI.dtype == torch.float32 and x.device.type == "cpu"
    if size < WORTH or not mine or not wide():
        return F.linear(x, weight_NI, bias_N)
    return torch.ops.mkldnn._linear_pointwise.default(x, weight_NI, bias_N, "none", [], "")
