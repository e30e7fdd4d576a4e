"""Memory that is read from end to end in every step."""

import torch
from torch import Tensor

from plait.kernels.choice import choose


def on_large_pages(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory on large pages where the system has them; it is taken as it is first written."""
    empty = torch.empty(shape, dtype=dtype)
    native = choose().native
    if native is not None:
        native.advise_large(empty.data_ptr(), empty.nbytes)
    return empty
