"""`LateWeights`: backwards in two parts, so that what nothing waits for can run later.

A backward of a stage gives the gradient of its input, which the stage before waits for, and those of its
weights, which nobody waits for (zero-bubble schedules, arXiv 2401.10241). Linear layers hold nearly all
weights: theirs are computed when `settle` is called, all others with the input's. The sums are those that
would be made at once, bit by bit.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from plait.training.product import product

Debt = tuple[nn.Linear, Tensor, Tensor]
"""A layer, its input [T, I] and the gradient of its output [T, N]."""


class LateWeights:
    """The linear layers of one stage. While `owing` is open, their weights wait."""

    def __init__(self, module: nn.Module) -> None:
        """From now on the layers' forwards go through here, and by `product`."""
        self._debts: list[Debt] | None = None
        for part in module.modules():
            if isinstance(part, nn.Linear):
                part.forward = partial(self._linear, part)

    @contextmanager
    def owing(self) -> Iterator[list[Debt]]:
        """Backwards in here leave the linear layers' weights out, and note what they owe in the list."""
        self._debts = []
        try:
            yield self._debts
        finally:
            self._debts = None

    @staticmethod
    @torch.no_grad()
    def settle(debts: list[Debt]) -> None:
        """Add what is owed to the gradients, in the order of the backward."""
        for layer, x_TI, out_TN in debts:
            if layer.weight.requires_grad:
                _add(layer.weight, product(out_TN.t(), x_TI.t()))
            if layer.bias is not None and layer.bias.requires_grad:
                _add(layer.bias, out_TN.sum(0))
        debts.clear()

    def owe(self, layer: nn.Linear, x: Tensor, out: Tensor) -> None:
        """Note a debt; without `owing` it is settled at once."""
        if not any(parameter.requires_grad for parameter in layer.parameters()):
            return
        debt = (layer, x.reshape(-1, x.shape[-1]), out.reshape(-1, out.shape[-1]))
        if self._debts is None:
            self.settle([debt])
        else:
            self._debts.append(debt)

    def _linear(self, layer: nn.Linear, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return _Linear.apply(x, layer.weight, layer, self)
        return product(x, layer.weight, layer.bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_NI: Tensor, layer: nn.Linear, late: LateWeights) -> Tensor:
        ctx.save_for_backward(x)
        ctx.layer, ctx.late = layer, late
        return product(x, weight_NI, layer.bias)

    @staticmethod
    def backward(ctx: Any, out: Tensor) -> tuple[Tensor | None, None, None, None]:
        (x,) = ctx.saved_tensors
        ctx.late.owe(ctx.layer, x, out)
        back = product(out, ctx.layer.weight.t()) if ctx.needs_input_grad[0] else None
        return back, None, None, None


def _add(parameter: nn.Parameter, gradient: Tensor) -> None:
    if parameter.grad is None:
        parameter.grad = gradient
    else:
        parameter.grad += gradient
