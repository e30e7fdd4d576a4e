"""`GroupPlan`: what one member of a group does in a step; drawn up by `plait.worker.group`.

Legend: see `plait.model.group`; a member's number is its place in the ring, I marks a row's new tokens.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from plait.model.group import GroupInputs
from plait.model.inputs import Adapted, StepInputs
from plait.worker.rows import RowState


@dataclass(frozen=True, slots=True)
class Shared:
    """A row of the step, as this member sees it."""

    at: int
    """Its place among the rows of the step."""
    state: RowState
    first: int
    count: int
    stride: int
    draws: bool
    """This member draws its next token."""
    master: int
    """Number of the member."""
    held: tuple[int, ...]
    """Tokens before `first` that each member keeps."""
    takers_I: NDArray[np.int64]
    """Member that keeps each new token."""

    def positions(self, member: int) -> range:
        """Positions of new tokens that a member computes."""
        own = self.owned(member)
        return range(self.first + own.start, self.first + own.stop, own.step)

    def owned(self, member: int) -> range:
        """New tokens that a member computes, counted from `first`."""
        if self.stride > 1:
            return range(member, self.count, self.stride)
        return range(self.count if member == self.master else 0)


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """A member's part of a step."""

    member: int
    """Its number."""
    rows: int
    """Of the step."""
    shares: list[Shared]
    """Those that this member takes part in, in the order of the step."""
    inputs: StepInputs | None
    """None: no token is computed here."""
    group: GroupInputs
    owned_R: list[slice]
    """Of the wanted logits, those of each share."""
    tables_RP: Tensor
    adapted: Adapted | None = None
    """Which own tokens have adapters."""
