"""`Dialogue`: what a member says to the others and hears from them in every layer of a decode step.

It is the same in all layers but for where tensors lie, so it is laid out once, before the step begins. Its
bytes and their order are those of `plait.model.group`: who plays a tape and who does not can be of one group.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Strip:
    """A dense tensor of the same shape in every layer."""

    at_L: NDArray[np.int64]
    """Its addresses."""
    row_bytes: int

    @staticmethod
    def of(tensors: Sequence[Tensor]) -> "Strip":
        """Of one tensor for each layer, which somebody keeps."""
        assert all(x.is_contiguous() and x.shape == tensors[0].shape for x in tensors), "dense and equal"
        at_L = np.array([x.data_ptr() for x in tensors], np.int64)
        whole = tensors[0] if tensors else None
        return Strip(at_L, whole.nbytes // len(whole) if whole is not None and len(whole) else 0)


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows [first, past) of a strip, to a member or from it."""

    member: int
    strip: Strip
    first: int
    past: int


@dataclass(frozen=True, slots=True)
class Script:
    """Pieces in the order in which they go to each member, and come from it."""

    asks: tuple[Piece, ...]
    """Own queries."""
    questions: tuple[Piece, ...]
    """Queries of others."""
    answers: tuple[Piece, ...]
    """To these."""
    replies: tuple[Piece, ...]
    """To the own queries."""


class Dialogue(Protocol):
    """In each layer all three, in this order."""

    def ask(self, layer: int) -> None:
        """Send own queries, as far as they go without waiting."""

    def hear(self, layer: int) -> None:
        """Return when they are under way, and the queries of others are here."""

    def answer(self, layer: int) -> None:
        """Send answers; return when the replies are here."""
