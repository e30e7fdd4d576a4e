"""Elementwise work on strided tensors, prepared once for its addresses; what it computes is what torch's
op of the same name computes, in float32, rounded to the type of the result."""

from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from plait.kernels.choice import choose

TYPES = {torch.float32: 0, torch.bfloat16: 1}
"""Types that the work is done on."""


class Map(IntEnum):
    """Functions of one element, then (from ADD on) of two; the numbers are those of native/elementwise.h."""

    COPY = 0
    NEG = 1
    SQUARE = 2
    RSQRT = 3
    SILU = 4
    GELU = 5
    GELU_TANH = 6
    RELU = 7
    SIGMOID = 8
    TANH = 9
    ADD = 10
    MUL = 11
    SUB = 12
    DIV = 13


def map_work(kind: Map, out: Tensor, a: Tensor, b: Tensor | None = None, threads: int = 1) -> Any:
    """Work that sets `out` to kind(a) or kind(a, b), which are broadcast to its shape."""
    choice = choose()
    assert choice.native is not None, "elementwise work is native"
    assert all(x.dtype in TYPES for x in (out, a, b) if x is not None), "float32 and bfloat16 only"
    sizes, kept = _squeezed(out)
    operands: list[Any] = []
    for x in (a, b):
        if x is None:
            operands += [0, 0, [0] * len(sizes)]
        else:
            strides = x.expand(out.shape).stride()
            operands += [x.data_ptr(), TYPES[x.dtype], [strides[d] for d in kept]]
    strides = [out.stride(d) for d in kept]
    return choice.native.map_work(
        choice.isa, int(kind), sizes, *operands, out.data_ptr(), TYPES[out.dtype], strides, threads
    )


def mean_work(out: Tensor, a: Tensor) -> Any:
    """Work that sets each element of `out` to the mean of a dense row of `a`."""
    choice = choose()
    assert a.is_contiguous() and out.is_contiguous() and a.dtype == out.dtype  # noqa: PT018
    n = a.shape[-1]
    return choice.native.mean_work(
        choice.isa, a.numel() // n, n, a.data_ptr(), TYPES[a.dtype], n, out.data_ptr()
    )


def layer_norm_work(out: Tensor, a: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
    """Work that normalises each dense row of `a`."""
    choice = choose()
    assert a.is_contiguous() and out.is_contiguous()  # noqa: PT018
    assert all(x is None or (x.dtype == a.dtype and x.is_contiguous()) for x in (weight, bias))
    n, (w, b) = a.shape[-1], (0 if x is None else x.data_ptr() for x in (weight, bias))
    return choice.native.layer_norm_work(
        choice.isa, a.numel() // n, n, a.data_ptr(), TYPES[a.dtype], w, b, eps, out.data_ptr()
    )


def gather_work(out: Tensor, table: Tensor, indices: Tensor) -> Any:
    """Work that sets the rows of `out` to those rows of `table` (int64 `indices`)."""
    choice = choose()
    assert table.is_contiguous() and out.is_contiguous() and indices.is_contiguous()  # noqa: PT018
    assert indices.dtype == torch.int64 and table.dtype == out.dtype  # noqa: PT018
    row_bytes = table[0].numel() * table.element_size()
    return choice.native.gather_work(
        indices.numel(), row_bytes, table.data_ptr(), len(table), indices.data_ptr(), out.data_ptr()
    )


def _squeezed(out: Tensor) -> tuple[list[int], list[int]]:
    """Sizes and numbers of the dimensions that are not 1, the longest dense one last."""
    kept = [d for d in range(out.dim()) if out.shape[d] != 1] or ([0] if out.dim() else [])
    return [out.shape[d] for d in kept], kept
