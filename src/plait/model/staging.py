"""Brings the small tensors of a step to the device: packed in one pinned buffer, by one asynchronous copy.

Torch gives a pinned buffer out again only when the copies from it are done, so a buffer is never
overwritten while the device still reads it.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from plait.model.inputs import StepInputs

ALIGN_BYTES = 64
"""Each tensor begins at a multiple of this, as kernels expect of addresses."""


class Static:
    """Tensors at fixed addresses of a device, filled in one copy."""

    __slots__ = ("_buffer", "tensors")

    def __init__(self, like: Sequence[Tensor], device: torch.device) -> None:
        """Tensors of the shapes, types and values of `like`."""
        self._buffer = _packed(like, device).to(device, non_blocking=True)
        self.tensors = _carved(self._buffer, like)

    def fill(self, values: Sequence[Tensor]) -> None:
        """Copy values of the same shapes and types; the host does not wait for it."""
        self._buffer.copy_(_packed(values, self._buffer.device), non_blocking=True)


def staged(inputs: StepInputs, page: int, device: torch.device) -> StepInputs:
    """The same step on `device`, its tables cut down to the rows and pages that it uses."""
    if device.type == "cpu":
        return inputs
    small = replace(inputs, tables_RP=used_tables(inputs, page), rows_R=_counted(inputs.rows_R))
    return StepInputs(*Static([getattr(small, name) for name in StepInputs.__slots__], device).tensors)


def used_tables(inputs: StepInputs, page: int) -> Tensor:
    """The tables of the step's rows, in their order, as wide as the longest row needs."""
    pages = -(-int(inputs.lens_R.max()) // page) if len(inputs.lens_R) else 0
    return inputs.tables_RP[:, :pages].index_select(0, inputs.rows_R.long())


def _counted(rows_R: Tensor) -> Tensor:
    return torch.arange(len(rows_R), dtype=rows_R.dtype)


def _packed(values: Sequence[Tensor], device: torch.device) -> Tensor:
    """The bytes of all values, in memory that `device` can read while the host goes on."""
    size = sum(_room(value) for value in values)
    buffer = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    for place, value in zip(_carved(buffer, values), values, strict=True):
        place.copy_(value)
    return buffer


def _carved(buffer: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Parts of the buffer, shaped as `like`."""
    parts, at = [], 0
    for x in like:
        parts.append(buffer[at : at + x.nbytes].view(x.dtype).view(x.shape))
        at += _room(x)
    return parts


def _room(x: Tensor) -> int:
    return -(-x.nbytes // ALIGN_BYTES) * ALIGN_BYTES
