"""`Replicas`: gradients of weights that several ranks hold, summed as soon as each is complete.

A weight is held twice or more where a model has several pipelines (data parallel), and where its input table
is its output head as well, on the first and the last stage.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Shared:
    """Weights of one stage that the same ranks hold."""

    weights: tuple[nn.Parameter, ...]
    group: dist.ProcessGroup


class Replicas:
    """What one rank shares of one stage. All ranks of a group begin their sums in the same order."""

    def __init__(self, shared: Sequence[Shared], patience_s: float) -> None:
        self._shared, self._patience = tuple(shared), timedelta(seconds=patience_s)
        self._under_way: list[tuple[Shared, Tensor, dist.Work]] = []

    def begin(self) -> None:
        """The last backward of the stage is over: start the sums, which go on beside what follows."""
        for each in self._shared:
            gradients = [torch.zeros_like(w) if w.grad is None else w.grad for w in each.weights]
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            work = dist.all_reduce(flat, group=each.group, async_op=True)
            self._under_way.append((each, flat, work))

    def finish(self) -> None:
        """Wait for the sums and put them in place. Raises RuntimeError if a rank is gone."""
        for each, flat, work in self._under_way:
            work.wait(self._patience)
            sizes = [weight.numel() for weight in each.weights]
            for weight, gradient in zip(each.weights, flat.split(sizes), strict=True):
                weight.grad = gradient.view_as(weight)
        self._under_way.clear()
