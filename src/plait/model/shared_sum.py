"""`SharedSum`: sums over processes of one host through memory that they share, in the order of their ranks.

The memory has no name: the first process makes it and tells the others where to find it among its open files,
which only this user may open.
"""

import mmap
import os
from collections.abc import Callable

import torch
from torch import Tensor

from plait.kernels.shared_sum import room_bytes, shared_sum

Gather = Callable[[Tensor], list[Tensor]]
"""Gives what every process has brought, in the order of ranks."""


class SharedSum:
    """One process's end."""

    def __init__(self, rank: int, size: int, memory: mmap.mmap, patience_s: float) -> None:
        self._rank, self._size, self._patience_s = rank, size, patience_s
        self._memory = torch.frombuffer(memory, dtype=torch.uint8)
        self._spin = len(os.sched_getaffinity(0)) >= size

    def __call__(self, x: Tensor) -> Tensor:
        """The sum of `x`, which is float32 or bf16, over all processes.

        Raises:
            RuntimeError: a process does not come; names it.
        """
        dense = x.contiguous()
        return shared_sum(dense, self._memory, self._rank, self._size, self._spin, self._patience_s)


def share(rank: int, size: int, gather: Gather, patience_s: float) -> SharedSum | None:
    """Make the memory of `size` processes; None where one of them cannot reach it. All must call this."""
    own = os.memfd_create("plait-sum") if rank == 0 else -1
    if rank == 0:
        os.truncate(own, room_bytes(size))
    pid, made = gather(torch.tensor([os.getpid(), own]))[0].tolist()
    try:
        file = own if rank == 0 else os.open(f"/proc/{pid}/fd/{made}", os.O_RDWR)
        memory = mmap.mmap(file, room_bytes(size))
    except OSError:
        memory = None
    else:
        if file != own:
            os.close(file)
    reached = gather(torch.tensor([memory is not None]))
    if rank == 0:
        os.close(own)
    return SharedSum(rank, size, memory, patience_s) if memory and all(map(bool, reached)) else None
