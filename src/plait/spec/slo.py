"""What must hold: latency objectives of one request."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Slo:
    """Objectives that a request meets jointly or not at all."""

    ttft_ns: int
    """Time to first token, from arrival."""
    tpot_ns: int
    """Time per output token after the first."""

    def met(self, ttft_ns: float, tpot_ns: float) -> bool:
        """Whether both objectives hold."""
        return ttft_ns <= self.ttft_ns and tpot_ns <= self.tpot_ns
