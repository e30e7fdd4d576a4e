"""Rotary embeddings by table lookup: a position's cosines do not depend on what stands beside it."""

import inspect
import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

Rotary = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Table:
    """Cosines and sines of every position, computed once by the model's own rotary module."""

    __slots__ = ("cos_LD", "sin_LD")

    def __init__(self, rotary: nn.Module, max_len: int, dtype: torch.dtype) -> None:
        example = torch.empty(1, dtype=dtype)
        cos_1LD, sin_1LD = rotary(example, torch.arange(max_len)[None])
        self.cos_LD, self.sin_LD = cos_1LD[0].contiguous(), sin_1LD[0].contiguous()

    def __call__(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [1, T, D] of positions [1, T], as the module itself gives them."""
        at_T = position_ids[0]
        return self.cos_LD.index_select(0, at_T)[None], self.sin_LD.index_select(0, at_T)[None]


def install(module: nn.Module, max_len: int, dtype: torch.dtype) -> bool:
    """Replace the forward of each rotary module by a table, where the table is equal to it.

    Returns:
        Whether every rotary module got its table (also if there are none).
    """
    done = True
    for name, part in module.named_modules():
        if "RotaryEmbedding" not in type(part).__name__:
            continue
        if list(inspect.signature(type(part).forward).parameters) != ["self", "x", "position_ids"]:
            log.warning("%s takes more than positions: computed anew in each step", name)
            done = False
            continue
        table = Table(part, max_len, dtype)
        if _equal(part, table, max_len, dtype):
            part.forward = table
        else:
            log.warning("%s gives other values in a batch than alone: computed anew in each step", name)
            done = False
    return done


def _equal(rotary: nn.Module, table: Table, max_len: int, dtype: torch.dtype) -> bool:
    """Whether positions in other company than the table's give what it holds, up to the last bits."""
    x, slack = torch.empty(1, dtype=dtype), 1e-6 if dtype == torch.float32 else 1e-2
    early = torch.linspace(0, max_len // 2, min(33, max_len)).long().flip(0)
    for at_T in (early, torch.tensor([max_len - 1])):
        pairs = zip(rotary(x, at_T[None]), table(x, at_T[None]), strict=True)
        if not all(torch.allclose(a.float(), b.float(), rtol=slack, atol=slack) for a, b in pairs):
            return False
    return True
