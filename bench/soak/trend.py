"""How fast something grows, and by which factor a percentile changed, with intervals that may be believed.

Memory goes up and down in steps and stays there: neighbouring samples are anything but independent, and the
usual interval of a fitted line is far too narrow. Here blocks of successive *changes* are drawn and put
together to other paths which the same process might have taken (a moving-block bootstrap); the interval is
that of the lines fitted to them. (H. R. Künsch, The jackknife and the bootstrap for general stationary
observations, Annals of Statistics 17, 1989.)
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 2000
BLOCKS = 16
"""Into which a series is thought to fall: what happens in one has little to do with the next."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


def slope(values_N: Floats, period: float, rng: np.random.Generator) -> Estimate:
    """Growth per unit of time of a series with a sample every `period`. Legend: N samples, R draws."""
    count = len(values_N)
    if count < 2 * BLOCKS:
        raise ValueError(f"{count} samples are too few for {BLOCKS} blocks")
    changes_N = np.diff(values_N)
    block = max(1, len(changes_N) // BLOCKS)
    starts_RB = rng.integers(0, len(changes_N) - block + 1, (DRAWS, -(-len(changes_N) // block)))
    picked_RN = (starts_RB[:, :, None] + np.arange(block)).reshape(DRAWS, -1)[:, : len(changes_N)]
    paths_RN = np.concatenate([np.zeros((DRAWS, 1)), np.cumsum(changes_N[picked_RN], axis=1)], axis=1)
    slopes_R = _fit(paths_RN, period)
    low, high = np.percentile(slopes_R, [2.5, 97.5])
    return Estimate(float(_fit(values_N[None], period)[0]), float(low), float(high))


def _fit(values_RN: Floats, period: float) -> Floats:
    """Slopes of the lines of least squares."""
    at_N = (np.arange(values_RN.shape[1]) - (values_RN.shape[1] - 1) / 2) * period
    return np.asarray(values_RN @ at_N / (at_N @ at_N))


def ratio(before_N: Floats, after_N: Floats, percent: float, rng: np.random.Generator) -> Estimate:
    """Percentile of `after_N` over that of `before_N`; blocks of successive requests are drawn of each."""
    drawn_R = _percentiles(after_N, percent, rng) / _percentiles(before_N, percent, rng)
    low, high = np.percentile(drawn_R, [2.5, 97.5])
    value = np.percentile(after_N, percent) / np.percentile(before_N, percent)
    return Estimate(float(value), float(low), float(high))


def _percentiles(values_N: Floats, percent: float, rng: np.random.Generator) -> Floats:
    block = max(1, len(values_N) // BLOCKS)
    found = []
    for _ in range(DRAWS):
        starts = rng.integers(0, len(values_N) - block + 1, -(-len(values_N) // block))
        picked = (starts[:, None] + np.arange(block)).reshape(-1)[: len(values_N)]
        found.append(np.percentile(values_N[picked], percent))
    return np.array(found)
