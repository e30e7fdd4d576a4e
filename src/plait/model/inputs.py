"""`StepInputs`: what one forward computes, as tensors. Legend: T tokens, R rows, P pages, L wanted,
A tokens with an adapter."""

from collections.abc import Callable, Container
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plait.model.group import Together


@dataclass(frozen=True, slots=True)
class StepInputs:
    """One flat row of the new tokens of R requests."""

    tokens_T: Tensor
    """int64 token ids, request after request."""
    positions_T: Tensor
    """int64 position of each token in its request."""
    slots_T: Tensor
    """int32 slot that each token's key and value go to."""
    starts_R: Tensor
    """int32, R + 1 entries: row r owns tokens [starts[r], starts[r + 1])."""
    lens_R: Tensor
    """int32 positions of each row that have keys once this step has stored its own."""
    rows_R: Tensor
    """int32: which row of `tables_RP` each request uses."""
    tables_RP: Tensor
    """int32 pages of each request, in order of position."""
    wanted_L: Tensor
    """int64 indices of the tokens whose logits are wanted."""


@dataclass(frozen=True, slots=True)
class Adapted:
    """Which tokens of a step have an adapter."""

    groups: tuple[tuple[int, int], ...]
    """(number of the adapter, how many tokens), each number once."""
    tokens_A: Tensor
    """int64 indices of these tokens, group after group."""

    @staticmethod
    def of_rows(numbers_R: NDArray[np.int64], counts_R: NDArray[np.int64]) -> "Adapted | None":
        """Of rows with so many tokens each and these adapters, 0 for none; None where no row has one."""
        if not numbers_R.any():
            return None
        numbers_T = np.repeat(numbers_R, counts_R)
        order_T = np.argsort(numbers_T, kind="stable")
        tokens_A = order_T[np.count_nonzero(numbers_T == 0) :]
        numbers, counts = np.unique(numbers_T[tokens_A], return_counts=True)
        groups = tuple(zip(numbers.tolist(), counts.tolist(), strict=True))
        return Adapted(groups, torch.from_numpy(tokens_A)) if groups else None

    def among(self, numbers: Container[int]) -> "Adapted | None":
        """The same of these adapters only; None where it has no token of theirs."""
        groups = tuple(group for group in self.groups if group[0] in numbers)
        if len(groups) == len(self.groups) or not groups:
            return self if groups else None
        parts = self.tokens_A.split([count for _, count in self.groups])
        kept = [part for part, group in zip(parts, self.groups, strict=True) if group in groups]
        return Adapted(groups, torch.cat(kept))


class Current:
    """The inputs of the forward that runs now; one per model, seen by all its attention layers and by the
    linear layers that have adapters."""

    __slots__ = ("adapted", "inputs", "stored", "together")

    def __init__(self) -> None:
        self.inputs: StepInputs | None = None
        self.adapted: Adapted | None = None
        self.together: Together | None = None
        """Set where several instances compute the step."""
        self.stored: Callable[[int], None] | None = None
        """Told how many layers have stored their keys and values, after each of them."""
