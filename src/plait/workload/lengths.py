"""Prompt and output lengths of synthetic workloads, in tokens. Randomness comes as an argument."""

from collections.abc import Sequence

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from plait.spec.errors import UserError
from plait.workload.arrivals import Times
from plait.workload.trace import TraceRow

Lengths = NDArray[np.int64]


def fixed(tokens: int, count: int) -> Lengths:
    """All the same."""
    _check(tokens >= 1, f"a length of {tokens} tokens; it is at least 1")
    return np.full(count, tokens, np.int64)


def uniform(rng: Generator, low: int, high: int, count: int) -> Lengths:
    """Equally likely from `low` to `high`, both included."""
    _check(1 <= low <= high, f"lengths from {low} to {high} tokens; expected 1 <= low <= high")
    return rng.integers(low, high, size=count, endpoint=True)


def lognormal(rng: Generator, mean: float, cv: float, most: int, count: int) -> Lengths:
    """Log-normal with this mean and coefficient of variation before it is cut to 1 .. `most`."""
    _check(mean > 0 and cv > 0 and most >= 1, f"mean {mean}, cv {cv}, most {most}: all must be above 0")
    variance = np.log1p(cv**2)
    drawn = rng.lognormal(np.log(mean) - variance / 2, np.sqrt(variance), size=count)
    return np.clip(np.rint(drawn), 1, most).astype(np.int64)


def resampled(rng: Generator, rows: Sequence[TraceRow], count: int) -> list[TraceRow]:
    """Rows drawn from a trace with replacement: both lengths and the hashes of one request stay together."""
    return [rows[index] for index in rng.integers(len(rows), size=count)]


def workload(times: Times, prompts: Lengths, outputs: Lengths) -> list[TraceRow]:
    """Arrivals and lengths, one to one, as a trace."""
    columns = zip(times.tolist(), prompts.tolist(), outputs.tolist(), strict=True)
    return [TraceRow(arrival_ns, prompt, output) for arrival_ns, prompt, output in columns]


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise UserError(message)
