"""`Forecast`: what a stage will take, by its model's sizes and a cost model; rough, where not measured.

Seconds are those of the arithmetic and the traffic alone, so a stage takes that long or longer.
"""

from dataclasses import dataclass

from plait.cost.catalog import cost_named, device_named
from plait.cost.cost import Cost
from plait.cost.roofline import Roofline
from plait.spec.shape import ModelShape
from plait.spec.step import Row, Step

NS = 1e9
DEVICE = "cpu-core"
CHUNK = 256
"""Tokens of a forward that stands for longer ones."""
TRAINED = 3
"""Forwards that a training step takes: one, and a backward of twice its arithmetic."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """Of one stage."""

    what: str
    """In words."""
    memory_bytes: int | None = None
    """That all processes hold; None: little."""
    seconds: float | None = None
    """At least; None: cannot be told."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Where times come from."""

    source: str | None = None
    """A cost file, such as `plait profile` writes, or DEVICE/MODEL; None: the roofline of one core."""

    def of(self, shape: ModelShape) -> Cost:
        """Step times of a model of this shape. Raises UserError: there is no such file, device or model."""
        return Roofline(device_named(DEVICE), shape) if self.source is None else cost_named(self.source)

    def forward_s(self, shape: ModelShape, tokens: int) -> float:
        """Seconds to read so many tokens, in forwards of `CHUNK`."""
        step = Step(0, (0,), (Row(0, 0, CHUNK),))
        return self.of(shape).step_ns(step) / NS * tokens / CHUNK

    def decode_s(self, shape: ModelShape, rows: int, context: int) -> float:
        """Seconds of a decode step of so many rows, each with so many tokens of context."""
        step = Step(0, (0,), (), again=tuple(range(rows)), context_tokens=rows * context)
        return self.of(shape).step_ns(step) / NS
