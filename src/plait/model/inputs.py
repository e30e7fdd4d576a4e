"""`StepInputs`: what one forward computes, as tensors. Legend: T tokens, R rows, P pages, L wanted."""

from collections.abc import Callable
from dataclasses import dataclass

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


class Current:
    """The inputs of the forward that runs now; one per model, seen by all its attention layers."""

    __slots__ = ("inputs", "stored", "together")

    def __init__(self) -> None:
        self.inputs: StepInputs | None = None
        self.together: Together | None = None
        """Set where several instances compute the step."""
        self.stored: Callable[[int], None] | None = None
        """Told how many layers have stored their keys and values, after each of them."""
