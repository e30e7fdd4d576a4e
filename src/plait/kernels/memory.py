"""Memory that is read from end to end in every step."""

import torch
from torch import Tensor

from plait.kernels.choice import choose


def populate(tensor: Tensor, first: int, past: int) -> bool:
    """Take the memory of `tensor[first:past]` now, whatever it contains; False where that cannot be done."""
    native, part = choose().native, tensor[first:past]
    return native is not None and native.populate(part.data_ptr(), part.nbytes)


def on_large_pages(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory on large pages where the system has them; it is taken as it is first written."""
    empty = torch.empty(shape, dtype=dtype)
    native = choose().native
    if native is not None:
        native.advise_large(empty.data_ptr(), empty.nbytes)
    return empty
