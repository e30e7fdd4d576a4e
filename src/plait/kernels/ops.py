"""Our ops, registered with torch under `torch.ops.plait`: native where built, else the references."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from plait.kernels import linear_reference, reference
from plait.kernels.choice import choose
from plait.kernels.registration import register

SCHEMAS = (
    "pack(Tensor[] weights) -> Tensor",
    "linear(Tensor x, Tensor packed, Tensor? bias, int outputs, int threads) -> Tensor",
)
LINEAR_SCHEMAS = (
    "pack_bf16(Tensor[] weights) -> Tensor",
    "pack_gated(Tensor gate, Tensor up) -> Tensor",
    "gated_bf16(Tensor x, Tensor packed, int width, int threads) -> Tensor",
    "gated_halves(Tensor x, Tensor packed, int width, int threads) -> Tensor",
    "pack_int8(Tensor[] codes) -> Tensor",
    "pack_int4(Tensor[] codes) -> Tensor",
    "pack_scales(Tensor scales) -> Tensor",
    "linear_bf16(Tensor x, Tensor packed, Tensor? bias, int outputs, bool wide, int threads) -> Tensor",
    "linear_int8(Tensor x, Tensor packed, Tensor scales, Tensor? bias, int outputs, bool wide, int threads) "
    "-> Tensor",
    "linear_int4(Tensor x, Tensor packed, Tensor scales, Tensor? bias, int outputs, int group, bool wide, "
    "int threads) -> Tensor",
)


def _bodies() -> dict[str, Callable[..., Any]]:
    """The body of each op."""
    if choose().native is None:
        modules: tuple[ModuleType, ModuleType] = (reference, linear_reference)
    else:
        from plait.kernels import linear, native

        modules = (native, linear)
    return {
        schema.partition("(")[0]: getattr(module, schema.partition("(")[0])
        for schemas, module in zip((SCHEMAS, LINEAR_SCHEMAS), modules, strict=True)
        for schema in schemas
    }


BODIES = _bodies()
"""Name of each op -> the function that carries it out."""
LIBRARY = register((*SCHEMAS, *LINEAR_SCHEMAS), BODIES)
"""Keeps the registration alive."""

pack = torch.ops.plait.pack.default
linear = torch.ops.plait.linear.default
pack_bf16 = torch.ops.plait.pack_bf16.default
pack_gated = torch.ops.plait.pack_gated.default
gated_bf16 = torch.ops.plait.gated_bf16.default
gated_halves = torch.ops.plait.gated_halves.default
pack_int8 = torch.ops.plait.pack_int8.default
pack_int4 = torch.ops.plait.pack_int4.default
pack_scales = torch.ops.plait.pack_scales.default
linear_bf16 = torch.ops.plait.linear_bf16.default
linear_int8 = torch.ops.plait.linear_int8.default
linear_int4 = torch.ops.plait.linear_int4.default
