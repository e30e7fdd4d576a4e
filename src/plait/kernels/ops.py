"""Our ops, registered with torch under `torch.ops.plait`: native where built, else the references."""

import torch

from plait.kernels import reference
from plait.kernels.choice import choose

SCHEMAS = (
    "pack(Tensor[] weights) -> Tensor",
    "linear(Tensor x, Tensor packed, Tensor? bias, int outputs, int threads) -> Tensor",
)


def _register() -> torch.library.Library:
    if choose().native is None:
        bodies = reference
    else:
        from plait.kernels import native as bodies
    library = torch.library.Library("plait", "DEF")
    for schema in SCHEMAS:
        library.define(schema)
        name = schema.partition("(")[0]
        library.impl(name, getattr(bodies, name), "CPU")
    return library


LIBRARY = _register()
"""Keeps the registration alive."""

pack = torch.ops.plait.pack.default
linear = torch.ops.plait.linear.default

__all__ = ["LIBRARY", "linear", "pack"]
