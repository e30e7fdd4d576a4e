"""Arrival times of synthetic workloads: nanoseconds, rising, from 0. Randomness comes as an argument."""

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from plait.spec.errors import UserError

NS = 1e9
Times = NDArray[np.int64]


def constant(rate_hz: float, count: int) -> Times:
    """Evenly spaced."""
    return _times(np.full(count, 1.0), rate_hz)


def poisson(rng: Generator, rate_hz: float, count: int) -> Times:
    """Independent arrivals: exponential gaps."""
    return _times(rng.exponential(size=count), rate_hz)


def gamma(rng: Generator, rate_hz: float, cv: float, count: int) -> Times:
    """Gaps from a gamma distribution with this coefficient of variation; 1 is Poisson, above 1 is bursty."""
    if cv <= 0:
        raise UserError(f"the coefficient of variation is {cv}; it must be above 0", param="cv")
    return _times(rng.gamma(1 / cv**2, cv**2, size=count), rate_hz)


def bursts(rng: Generator, rate_hz: float, size: int, count: int) -> Times:
    """Bursts of `size` requests at one instant, whose instants are Poisson."""
    if size < 1:
        raise UserError(f"bursts of {size} requests; a burst has at least one", param="size")
    starts = poisson(rng, rate_hz / size, -(-count // size))
    return np.repeat(starts, size)[:count]


def _times(gaps: NDArray[np.float64], rate_hz: float) -> Times:
    if rate_hz <= 0:
        raise UserError(f"the rate is {rate_hz} requests/s; it must be above 0", param="rate")
    ends = np.cumsum(gaps) / rate_hz * NS
    times: Times = np.rint(ends - ends[:1]).astype(np.int64)
    return times
