"""Rotary embeddings: angles by table lookup, because a position's do not depend on what stands beside it, and
queries and keys turned where keys are stored."""

import inspect
import logging
from collections.abc import Callable
from types import FunctionType, MethodType

import torch
from torch import Tensor, nn

from plait.kernels.pointwise import Reference

log = logging.getLogger(__name__)

Rotary = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
ROTATION = "apply_rotary_pos_emb"
"""What transformers' attention layers call to turn queries and keys, by this name in their module."""


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


class Deferred:
    """Stands in for the rotation in one attention layer of a running step: queries and keys stay as they are,
    and the angles go to the layer's `Attend`, which turns them as it stores the keys."""

    __slots__ = ("layer", "rotation")

    def __init__(self, layer: nn.Module, rotation: Callable[..., tuple[Tensor, Tensor]]) -> None:
        self.layer, self.rotation = layer, rotation

    def __call__(
        self, q: Tensor, k: Tensor, cos_1TF: Tensor, sin_1TF: Tensor, unsqueeze_dim: int = 1
    ) -> tuple[Tensor, Tensor]:
        attend = self.layer.__dict__["attend"]
        if torch.is_grad_enabled() or attend.current.inputs is None:
            return self.rotation(q, k, cos_1TF, sin_1TF, unsqueeze_dim)
        attend.angles = cos_1TF[0], sin_1TF[0]
        return q, k


def defer(module: nn.Module) -> int:
    """Let every attention layer whose rotation is the one that our op does leave it to that op.

    Whether a layer does nothing else between its rotation and its attention is for the caller to see, from
    the logits; `undefer` takes it back. Returns how many layers defer.
    """
    count = 0
    usual: dict[object, bool] = {}
    """Rotation -> whether it is our op's; layers share one."""
    for layer in _attentions(module):
        forward = type(layer).forward
        rotation = forward.__globals__.get(ROTATION)
        if ROTATION not in forward.__code__.co_names:
            continue
        if rotation not in usual:
            usual[rotation] = _turns_halves(rotation)
        if not usual[rotation]:
            continue
        names = {**forward.__globals__, ROTATION: Deferred(layer, rotation)}
        own = FunctionType(
            forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__
        )
        own.__kwdefaults__ = forward.__kwdefaults__
        layer.forward = MethodType(own, layer)
        count += 1
    log.info("%d attention layers turn queries and keys as they store", count)
    return count


def undefer(module: nn.Module) -> None:
    """Give every attention layer its own forward back."""
    for layer in _attentions(module):
        layer.__dict__.pop("forward", None)


def _attentions(module: nn.Module) -> list[nn.Module]:
    return [part for part in module.modules() if "attend" in part.__dict__]


def _turns_halves(rotation: Callable[..., tuple[Tensor, Tensor]] | None) -> bool:
    """Whether a rotation equals our op's reference on random heads, turned whole and, if it can, in part."""
    if rotation is None:
        return False
    generator = torch.Generator().manual_seed(0)
    q_1HTD, k_1KTD = (torch.randn(1, heads, 5, 16, generator=generator) for heads in (4, 2))
    for rotated in (16, 8):
        cos_1TF, sin_1TF = (torch.randn(1, 5, rotated, generator=generator) for _ in "cs")
        try:
            turned = rotation(q_1HTD, k_1KTD, cos_1TF, sin_1TF)
        except (RuntimeError, TypeError):
            return rotated == 8  # who always turns whole heads need not know how to turn a part
        for own, x in zip(turned, (q_1HTD, k_1KTD), strict=True):
            ours_THD = Reference.turned(x[0].transpose(0, 1), cos_1TF[0], sin_1TF[0])
            if not torch.allclose(own[0].transpose(0, 1), ours_THD, rtol=1e-5, atol=1e-5):
                return False
    return True
