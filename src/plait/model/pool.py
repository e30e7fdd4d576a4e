"""`KvPool`: keys and values of every slot. It knows slots, never requests."""

import torch
from torch import Tensor

from plait.spec.shape import ModelShape


class KvPool:
    """One [S, K, D] tensor of keys and one of values for each layer (S slots, K heads, D head size).

    Slots belong to tokens; `page` neighbouring slots, starting at a multiple of it, hold neighbouring
    positions of one request.
    """

    def __init__(self, shape: ModelShape, slots: int, page: int, dtype: torch.dtype) -> None:
        """Memory is taken as slots are first written.

        Args:
            slots: token slots, a multiple of `page`.
        """
        assert slots % page == 0, f"{slots} slots are no whole number of pages of {page}"
        self.slots, self.page = slots, page
        sizes = [(slots, layer.kv_heads, layer.head_dim) for layer in shape.layers]
        self.layers: tuple[tuple[Tensor, Tensor], ...] = tuple(
            (torch.empty(size, dtype=dtype), torch.empty(size, dtype=dtype)) for size in sizes
        )
