"""`Columns`: one process's share of each layer of a stage (tensor parallel), by the model's own plan.

    x --same on all--> columns of q, k, v, gate, up --> rows of o, down --sum over columns--> y
    the gradient of y is the same on all; that of x is the sum over columns

The plan and the cutting are those of serving (`model.shard`); here both ways have their sums. What is not cut
is computed by every column, with the same bits, because sums give all of them the same.

Shapes: any; sums are over processes.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from plait.model import shard
from plait.model.config import Rank
from plait.spec.shape import LayerShape


class Columns:
    """See the module."""

    def __init__(
        self, module: nn.Module, layer: LayerShape, tp: int, column: int, group: dist.ProcessGroup
    ) -> None:
        """Cut a whole module, which is loaded.

        Args:
            group: the columns of this place, in order.

        Raises:
            Unsupported: the model has no plan, or its layers do not divide so.
        """
        self._group, self._tp, self.column = group, tp, column
        styles = shard.styles(module)
        cuts = shard.cut(module, layer, Rank(tp=tp, index=column))
        self._dims: dict[str, int] = {}
        """Parameter that is cut -> the dimension that it is cut in."""
        self.partial = frozenset(f"{n}.weight" for n, style in styles.items() if style == shard.WHOLE)
        """Parameters that are whole here and get only this column's part of their gradient."""
        for name, part in cuts.items():
            owner, _, kind = name.rpartition(".")
            linear = module.get_submodule(owner)
            if kind == "bias" and styles[owner] == shard.ROWS:  # added once, and so trained once
                linear.bias = linear.bias if part.owned else None
                continue
            self._dims[name] = part.dim
            weight = getattr(linear, kind)
            setattr(linear, kind, nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format)))
        self._sum(module, styles)

    def _sum(self, module: nn.Module, styles: Mapping[str, str]) -> None:
        entrances = dict.fromkeys(name.rpartition(".")[0] for name, s in styles.items() if s == shard.COLUMNS)
        for name in entrances:
            module.get_submodule(name).register_forward_pre_hook(self._enter, with_kwargs=True)
        for name, style in styles.items():
            if style == shard.ROWS:
                module.get_submodule(name).register_forward_hook(self._leave)

    def _enter(
        self, _: nn.Module, given: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if given:
            return (_Same.apply(given[0], self._group), *given[1:]), named
        return given, named | {"hidden_states": _Same.apply(named["hidden_states"], self._group)}

    def _leave(self, _: nn.Module, __: tuple[Any, ...], out: Tensor) -> Tensor:
        return _Summed.apply(out, self._group)

    def counts(self, name: str) -> bool:
        """Whether a parameter's gradient is counted here: one column counts what all have."""
        return not self.column or name in self._dims

    def whole(self, held: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The whole of each parameter, in the order of names; all columns call it, the first gets all."""
        found = dict(held)
        for name in sorted(self._dims.keys() & held.keys()):
            parts = [torch.empty_like(held[name]) for _ in range(self._tp)]
            dist.all_gather(parts, held[name].contiguous(), group=self._group)
            found[name] = torch.cat(parts, self._dims[name])
        return found


class _Same(torch.autograd.Function):
    """All columns have the same; the gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _summed(gradient, ctx.group), None


class _Summed(torch.autograd.Function):
    """The sum over columns; all have the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        return _summed(x, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def _summed(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    whole = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(whole, group=group)
    return whole
