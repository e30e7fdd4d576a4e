"""The op that sums over processes of one host, through memory that they share. Native only."""

import torch
from torch import Tensor

from plait.kernels.choice import choose
from plait.kernels.registration import register

LINE_BYTES = 64
"""Each process's counter lies in a line of its own."""
PART_BYTES = 256 << 10
"""Summed at once; larger tensors are summed in parts."""
SCHEMA = "shared_sum(Tensor x, Tensor memory, int rank, int size, bool spin, float patience_s) -> Tensor"


def room_bytes(size: int) -> int:
    """Memory, zeros at first, that `size` processes need."""
    return size * (LINE_BYTES + 2 * PART_BYTES)


def _shared_sum(x: Tensor, memory: Tensor, rank: int, size: int, spin: bool, patience_s: float) -> Tensor:
    """The sum of `x`, float32 or bf16, over the processes of `memory`, in float32 in the order of ranks.

    Raises:
        RuntimeError: a process does not come within `patience_s`; names it.
    """
    native = choose().native
    assert native is not None, "there is no reference that shares memory"
    assert x.dtype in (torch.float32, torch.bfloat16), f"sums of {x.dtype}"
    assert x.is_contiguous(), "sums of dense tensors"
    total = torch.empty(x.shape, dtype=x.dtype)
    bf16 = x.dtype == torch.bfloat16
    places = memory.data_ptr(), rank, size, PART_BYTES
    native.shared_sum(*places, x.data_ptr(), total.data_ptr(), x.nbytes, bf16, spin, patience_s)
    return total


BODIES = {"shared_sum": _shared_sum}
"""Name of each op -> the function that carries it out."""
LIBRARY = register((SCHEMA,), BODIES)
"""Keeps the registration alive."""

shared_sum = torch.ops.plait.shared_sum.default
