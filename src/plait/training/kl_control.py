"""The weight of the divergence from the reference, fixed or steered to a target (arXiv 1909.08593)."""

from dataclasses import dataclass

from plait.spec.errors import UserError

STEP_LIMIT = 0.2
"""An error counts up to this fraction of the target."""


@dataclass(frozen=True)
class KlControlConfig:
    """Weight of the divergence in the reward or in the loss."""

    coefficient: float = 0.05
    """At the start; also afterwards if there is no target."""
    target: float | None = None
    """Divergence to steer to, in nats, of what the caller measures (a token, a response); None: fixed."""
    horizon_samples: int = 10_000
    """An error that stays at its limit changes the weight by about a fifth over so many samples."""

    def __post_init__(self) -> None:
        if self.coefficient < 0:
            raise UserError(f"coefficient must be 0 or more, not {self.coefficient}", "coefficient")
        if self.target is not None and (self.target <= 0 or self.horizon_samples <= 0):
            raise UserError("an adaptive weight needs target and horizon_samples above 0", "target")


def next_coefficient(coefficient: float, kl: float, samples: int, config: KlControlConfig) -> float:
    """The weight after `samples` samples whose mean divergence was `kl`."""
    if config.target is None:
        return coefficient
    error = min(max(kl / config.target - 1, -STEP_LIMIT), STEP_LIMIT)
    return coefficient * (1 + error * samples / config.horizon_samples)
