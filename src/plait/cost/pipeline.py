"""`Pipeline`: an instance cut into stages, each with a share of the layers."""

from dataclasses import dataclass
from itertools import pairwise

from plait.cost.cost import Cost, Load
from plait.spec.cluster import Link
from plait.spec.errors import UserError
from plait.spec.step import Step

NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Pipeline:
    """`pp` stages of what `whole` takes on the devices of one stage.

    A step passes the stages one after another, so it takes as long as `whole` and the hops of its
    activations; the next one follows as soon as the first stage is free. Where layers do not divide evenly,
    the first stages have one more. With fewer than `pp` steps in flight, stages wait (bubbles).
    """

    whole: Cost
    pp: int
    layers: int
    """Of the model."""
    token_bytes: float
    """Activations of one token between stages: hidden size times bytes of a value."""
    hop: Link
    """Between neighbouring stages."""

    def __post_init__(self) -> None:
        if not 1 <= self.pp <= self.layers:
            raise UserError(f"{self.layers} layers cannot be cut into {self.pp} stages", param="pp")

    def step_ns(self, step: Step) -> int:
        """See `Cost`."""
        return sum(self.stages_ns(step))

    def stages_ns(self, step: Step) -> tuple[int, ...]:
        """See `Staged`. A hop counts to the stage that it leads to."""
        whole_ns = self.whole.step_ns(step)
        sent = Load.of(step).tokens * self.token_bytes / max(len(step.group), 1)
        hop_ns = self.hop.latency_ns + round(sent / self.hop.bandwidth * NS)
        cuts = [self._first_layer(stage) * whole_ns // self.layers for stage in range(self.pp + 1)]
        return tuple(
            max(1, after - before) + (hop_ns if stage else 0)
            for stage, (before, after) in enumerate(pairwise(cuts))
        )

    def _first_layer(self, stage: int) -> int:
        even, more = divmod(self.layers, self.pp)
        return stage * even + min(stage, more)
