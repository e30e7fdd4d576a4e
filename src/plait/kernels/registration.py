"""Registering our ops with torch, under `torch.ops.plait`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch


def register(schemas: Sequence[str], bodies: Mapping[str, Callable[..., Any]]) -> torch.library.Library:
    """Define ops and give them their bodies for the CPU. Whoever calls keeps the result: it keeps the ops."""
    library = torch.library.Library("plait", "FRAGMENT")
    for schema in schemas:
        name = schema.partition("(")[0]
        library.define(schema)
        library.impl(name, bodies[name], "CPU")
    return library


def register_on(key: str, bodies: Mapping[str, Callable[..., Any]]) -> torch.library.Library:
    """Give ops that are defined bodies for another kind of device, such as "CUDA". Keep the result."""
    library = torch.library.Library("plait", "IMPL")
    for name, body in bodies.items():
        library.impl(name, body, key)
    return library
