"""`Stage`: one stage of one model on a rank, and the micro-batches that are on their way through it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from plait.training.late import Debt, LateWeights


class Feed(Protocol):
    """What a model is given, and what becomes of what it gives. Micro-batches are numbered from 0."""

    def micro_batch(self, number: int) -> Any:
        """What every stage's module gets beside the activations."""

    def shape(self, number: int) -> tuple[int, ...]:
        """Shape of the activations between two stages."""

    def finish(self, number: int, output: Tensor) -> Tensor | None:
        """Take the last stage's output; returns the micro-batch's share of the loss (a scalar), None where
        nothing is trained."""


Module = Callable[[Tensor | None, Any], Tensor]
"""Takes the activations of the stage before (None at the first stage) and the feed's micro-batch."""


@dataclass(slots=True)
class _Flight:
    """A micro-batch between its F and its last backward here."""

    received: Tensor | None
    output: Tensor | None
    """With its graph; None where it is computed again for the backward."""


class Stage:
    """Runs F, B and W of one stage. Gradients add up in the order of the actions, which a schedule keeps that
    of the micro-batches; so they have the same bits whatever runs between them."""

    def __init__(self, module: nn.Module, *, first: bool, last: bool, recompute: bool = False) -> None:
        """
        Args:
            module: a `Module`; where `requires_grad` is False it is only run.
            recompute: keep the input alone, and compute the forward again in the backward.
        """
        self.module, self.first, self.last, self.recompute = module, first, last, recompute
        self.trained = any(parameter.requires_grad for parameter in module.parameters())
        self._late = LateWeights(module)
        self._flights: dict[int, _Flight] = {}
        self._debts: dict[int, list[Debt]] = {}

    def forward(self, number: int, received: Tensor | None, feed: Feed, *, train: bool) -> Tensor | None:
        """F: returns what the next stage gets, None at the last.

        Args:
            received: activations of the stage before; None at the first.
            train: a backward will follow.
        """
        assert (received is None) == self.first, "only the first stage receives nothing"
        if not train:
            with torch.no_grad():
                output = self.module(received, feed.micro_batch(number))
            if self.last:
                feed.finish(number, output)
            return None if self.last else output
        if received is not None:
            received.requires_grad_(True)
        again = self.recompute and not self.last  # the last stage's B follows its F at once
        with torch.set_grad_enabled(not again):
            output = self._output(number, received, feed)
        self._flights[number] = _Flight(received, None if again else output)
        return None if self.last else output.detach()

    def backward(self, number: int, gradient: Tensor | None, feed: Feed, *, late: bool) -> Tensor | None:
        """B: returns the gradient of what F received, None at the first stage.

        Args:
            gradient: of what F gave; None at the last stage.
            late: leave the linear layers' weights to W.
        """
        assert (gradient is None) == self.last, "only the last stage's backward begins with its loss"
        flight = self._flights.pop(number)
        output = flight.output
        if output is None:
            output = self._output(number, flight.received, feed)
        if late:
            with self._late.owing() as debts:
                torch.autograd.backward(output, gradient)
            self._debts[number] = debts
        else:
            torch.autograd.backward(output, gradient)
        return None if flight.received is None else flight.received.grad

    def weight(self, number: int) -> None:
        """W: add the gradients that B left out."""
        LateWeights.settle(self._debts.pop(number))

    def _output(self, number: int, received: Tensor | None, feed: Feed) -> Tensor:
        output = self.module(received, feed.micro_batch(number))
        if not self.last:
            return output
        loss = feed.finish(number, output)
        assert loss is not None, "a model that is trained has a loss"
        return loss

    @property
    def idle(self) -> bool:
        """No micro-batch is on its way through."""
        return not self._flights and not self._debts
