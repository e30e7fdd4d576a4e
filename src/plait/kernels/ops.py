"""Our ops, registered with torch under `torch.ops.plait`: native where built, else the references."""

import torch

from plait.kernels import reference
from plait.kernels.choice import choose

SCHEMAS = (
    "store_kv(Tensor k, Tensor v, Tensor slots, Tensor(a!) k_pool, Tensor(b!) v_pool) -> ()",
    "attend(Tensor q, Tensor k_pool, Tensor v_pool, Tensor tables, Tensor rows, Tensor starts, Tensor lens, "
    "Tensor positions, int page, float scale, int window, float softcap, int threads) -> (Tensor, Tensor)",
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

store_kv = torch.ops.plait.store_kv.default
attend = torch.ops.plait.attend.default
pack = torch.ops.plait.pack.default
linear = torch.ops.plait.linear.default

__all__ = ["LIBRARY", "attend", "linear", "pack", "store_kv"]
