"""`Kernel`: regression by likeness. Two deployments that differ little are measured alike.

A Matern kernel of smoothness 3/2 over standardised features; its ridge is the noise of measurements.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class KernelConfig:
    """How far likeness reaches, and how much measurements scatter."""

    reach: float = 0.1
    """Distance of one standard deviation of one feature; smaller reaches farther."""
    noise: float = 0.01
    """Variance of a measurement over that of the function."""
    clip: float = 3.0
    """Targets farther than this many typical deviations (1.48 median) from the median are moved there."""


@dataclass(frozen=True, slots=True, eq=False)
class Kernel:
    """A fitted model."""

    middle: Array
    scale: Array
    points: Array
    share: Array
    start: float

    def predict(self, features: Array) -> Array:
        """Values of rows, [rows, columns] -> [rows]."""
        near = _likeness((features - self.middle) / self.scale, self.points)
        values: Array = near @ self.share + self.start
        return values

    @staticmethod
    def fit(features: Array, target: Array, config: KernelConfig) -> "Kernel":
        """Fit to rows; columns that do not vary are left out of the distance."""
        middle: Array = features.mean(axis=0)
        spread = features.std(axis=0)
        scale: Array = np.where(spread > 1e-9, spread / config.reach, 1e12)
        points: Array = (features - middle) / scale
        start = float(np.median(target))
        reach = config.clip * 1.48 * float(np.median(np.abs(target - start)))
        pulled = np.clip(target - start, -reach, reach)
        near = _likeness(points, points)
        near[np.diag_indices_from(near)] += config.noise
        share = np.linalg.solve(near, pulled).astype(np.float64)
        return Kernel(middle, scale, points, share, start)


def _likeness(a: Array, b: Array) -> Array:
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None] - 2 * a @ b.T
    distance = np.sqrt(np.maximum(squares, 0.0))
    likeness: Array = (1 + distance) * np.exp(-distance)
    return likeness
