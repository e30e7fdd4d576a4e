"""`Aim`: what makes one candidate better than another at a rate."""

import math
from dataclasses import dataclass

from plait.planner.candidate import Candidate

Score = tuple[float, float]
"""Devices, then less goodput of a device; the smaller is the better."""
NEVER: Score = (math.inf, math.inf)
ROUNDING = 1e-9
"""Of rates that are divided and multiplied again."""


@dataclass(frozen=True, slots=True)
class Aim:
    """Fewest devices for `rate_hz` first, then most goodput of a device. Copies share load evenly."""

    rate_hz: float

    def copies(self, goodput_hz: float) -> int:
        """Of a candidate of which one bears so much; 0: none would do."""
        return max(1, math.ceil(self.rate_hz / goodput_hz - ROUNDING)) if goodput_hz > 0 else 0

    def score(self, candidate: Candidate, goodput_hz: float) -> Score:
        """Of a candidate, one copy of which bears so much."""
        if goodput_hz <= 0:
            return NEVER
        return (self.copies(goodput_hz) * candidate.devices, -goodput_hz / candidate.devices)

    def needed_hz(self, candidate: Candidate, bar: Score) -> float:
        """What one copy must bear for a score that is at least as good as `bar`; infinite: it cannot be."""
        if bar == NEVER:
            return 0.0
        devices, less = bar
        copies, over = divmod(int(devices), candidate.devices)
        if copies == 0:
            return math.inf
        enough = self.rate_hz / copies
        if over:
            return enough
        # As many devices as the other: it bears more on them, or does with a copy less.
        fewer = self.rate_hz / (copies - 1) if copies > 1 else math.inf
        return min(fewer, max(enough, -less * candidate.devices))
