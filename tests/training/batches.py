"""Random masked batches as hypothesis draws them, in float64."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """B samples of T positions; every sample has a token, tokens may have holes between them."""

    mask_BT: Tensor
    seed: int

    def normal(self, number: int) -> Tensor:
        """Values of the batch's shape: others for every number."""
        generator = torch.Generator().manual_seed(self.seed + number)
        return torch.randn(self.mask_BT.shape, generator=generator, dtype=torch.float64)


@st.composite
def batches(draw: st.DrawFn, samples: int = 5, positions: int = 7) -> Batch:
    count, length = draw(st.integers(1, samples)), draw(st.integers(1, positions))
    mask_BT = torch.zeros(count, length, dtype=torch.bool)
    for row in range(count):
        kept = draw(st.sets(st.integers(0, length - 1), min_size=1))
        mask_BT[row, sorted(kept)] = True
    return Batch(mask_BT, draw(st.integers(0, 2**31)) * 100)
