"""What bench/soak.py makes of series: intervals that hold the truth as often as they say."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the engine extra")

BENCH = Path(__file__).parents[2] / "bench"
SAMPLES, SERIES = 600, 120


@pytest.fixture
def trend(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    from soak import trend

    return trend


def noises(kind: str, rng: np.random.Generator) -> np.ndarray:
    """Megabytes that a series without growth goes up and down by."""
    fresh_N = rng.normal(0, 0.2, SAMPLES)
    if kind == "independent":
        return fresh_N
    if kind == "steps":
        return np.cumsum(np.where(rng.random(SAMPLES) < 0.05, rng.choice([-1.0, 1.0], SAMPLES), 0.0))
    found = np.zeros(SAMPLES)
    for at in range(1, SAMPLES):
        found[at] = 0.95 * found[at - 1] + fresh_N[at]
    return found


@pytest.mark.parametrize("kind", ["independent", "correlated", "steps"])
def test_the_interval_of_a_slope_contains_it(trend, kind):
    rng, held = np.random.default_rng(0), 0
    for _ in range(SERIES):
        values_N = noises(kind, rng) + 0.5 * np.arange(SAMPLES) / 60
        found = trend.slope(values_N, 1 / 60, rng)
        assert found.low < found.value < found.high
        held += found.low <= 0.5 <= found.high
    assert held >= 0.88 * SERIES, "an interval of 95 % that held the truth so rarely"


def test_a_leak_is_seen(trend):
    rng = np.random.default_rng(1)
    found = trend.slope(noises("correlated", rng) + 3 * np.arange(SAMPLES) / 60, 1 / 60, rng)
    assert found.low > 1


def test_a_percentile_that_rose_is_seen_and_one_that_did_not_is_not(trend):
    rng = np.random.default_rng(2)
    first, last = rng.gamma(4, 10, 2000), rng.gamma(4, 10, 2000)
    same, more = trend.ratio(first, last, 99, rng), trend.ratio(first, 1.4 * last, 99, rng)
    assert same.low < 1 < same.high
    assert more.low > 1.1


def test_too_few_samples_are_refused(trend):
    with pytest.raises(ValueError, match="too few"):
        trend.slope(np.zeros(10), 1.0, np.random.default_rng(0))
