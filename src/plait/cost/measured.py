"""`Measured`: step times of whole instances that were measured, and where `--cost` finds them."""

from pathlib import Path
from typing import Protocol

from plait.cost.cost import Cost
from plait.cost.profiled import Profiled
from plait.cost.step_profile import StepProfile
from plait.cost.tables import Tables
from plait.spec.shape import ModelShape


class Measured(Protocol):
    """What is known of instances with `tp` devices a stage and `pp` stages."""

    def refusal(self, tp: int, pp: int) -> str:
        """Why there is no cost of such an instance; empty: there is one."""
        ...

    def cost(self, shape: ModelShape, tp: int, pp: int) -> Cost:
        """Of a step on one of them."""
        ...

    def slots(self, tp: int, pp: int) -> int | None:
        """KV tokens that one holds; None: that was not measured."""
        ...

    def saturation(self, tp: int, pp: int) -> int | None:
        """L_m, in tokens; None: that was not measured."""
        ...


def measured_named(source: str, model: str, device: str) -> Measured | None:
    """What `--cost` asks for: `roofline` (None: nothing was measured), `a100-ENGINE`, or a profile's file.

    Raises:
        UserError: there are no such measurements of this model on this device.
    """
    if Path(source).is_file():
        return Profiled(StepProfile.load(Path(source)))
    return Tables.of(source, model, device)
