"""`Profiled`: what `plait profile` measured of one process, as the cost of instances that are like it."""

from dataclasses import dataclass

from plait.cost.cost import Cost
from plait.cost.step_profile import StepProfile
from plait.spec.shape import ModelShape


@dataclass(frozen=True, slots=True)
class Profiled:
    """See `Measured`. Instances of several devices were not measured, and are refused."""

    profile: StepProfile

    def refusal(self, tp: int, pp: int) -> str:
        """See `Measured`."""
        return "" if tp == pp == 1 else "the profile is of one process, tp1 pp1"

    def cost(self, shape: ModelShape, tp: int, pp: int) -> Cost:
        """See `Measured`."""
        return self.profile.fitted

    def slots(self, tp: int, pp: int) -> int | None:
        """Memory is the device's; it was not measured."""
        return None

    def saturation(self, tp: int, pp: int) -> int | None:
        """See `Measured`."""
        return self.profile.saturation_tokens
