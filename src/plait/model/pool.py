"""`KvPool`: keys and values of every slot. It knows slots, never requests."""

import torch
from torch import Tensor

from plait.kernels.attention import empty_pool, pool_shape
from plait.kernels.choice import choose
from plait.kernels.memory import populate
from plait.spec.shape import ModelShape

TAKEN_BYTES = 2 << 20
"""Memory of one layer that `KvPool.populate` takes at a time."""


class KvPool:
    """One tensor of keys and values for each layer, in the layout of `plait.kernels.attention`.

    Slots belong to tokens; `page` neighbouring slots, starting at a multiple of it, hold neighbouring
    positions of one request.
    """

    def __init__(
        self, shape: ModelShape, slots: int, page: int, dtype: torch.dtype, device: str = "cpu"
    ) -> None:
        """On a CPU memory is taken as slots are first written, on a GPU at once.

        Args:
            slots: token slots, a multiple of `page`.
            dtype: float32, bf16, or int8 with scales.
        """
        assert slots % page == 0, f"{slots} slots are no whole number of pages of {page}"
        self.slots, self.page = slots, page
        self.spare = slots
        """First slot of one page more, which nobody owns: idle rows of a decode step use it."""
        self.head_sizes = tuple(layer.head_dim for layer in shape.layers)
        """Elements of a head in each layer."""
        gpu = choose(device).isa == "triton"
        sizes = [
            pool_shape(slots + page, layer.kv_heads, layer.head_dim, page, dtype == torch.int8, gpu)
            for layer in shape.layers
        ]
        self.layers: tuple[Tensor, ...] = tuple(
            empty_pool(size, dtype, torch.device(device)) for size in sizes
        )

    def populate(self) -> None:
        """Take the memory of all slots of a CPU's pool, lower slots first. Beside a step it is safe: contents
        stay. A first touch of memory in the middle of a step costs as much as ten steps."""
        if self.layers[0].device.type != "cpu":
            return
        blocks = len(self.layers[0])
        part = max(1, TAKEN_BYTES // self.layers[0][:1].nbytes)
        for first in range(0, blocks, part):
            if not all(populate(layer, first, min(first + part, blocks)) for layer in self.layers):
                return
