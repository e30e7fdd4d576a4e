"""`Profile`: a workload in a few words, the same for a simulation and for a load generator."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator

from plait.spec.errors import UserError
from plait.workload import arrivals, lengths
from plait.workload.trace import TraceRow, at_rate, read_trace

PROCESSES = ("poisson", "gamma", "constant", "burst", "closed", "trace")


@dataclass(frozen=True, slots=True)
class Profile:
    """When requests come, how many, and how long they are."""

    process: str = "poisson"
    """One of `PROCESSES`. `closed`: all at 0, for a client that holds some number in flight; `trace`: the
    arrivals of a trace."""
    rate_hz: float | None = None
    """Requests a second; a trace is stretched to it, or keeps its own rate if None."""
    count: int = 64
    """Requests; at most this many of a trace."""
    prompt: str = "128"
    """Tokens: `128`, `64-256` (uniform), `lognormal:300:0.8` (mean, coefficient of variation)."""
    output: str = "64"
    """Tokens, in the same forms."""
    cv: float = 2.0
    """Coefficient of variation of `gamma`'s gaps."""
    burst: int = 8
    """Requests a burst of `burst`."""
    trace: Path | None = None
    """Lengths, and for `trace` arrivals, come from this file instead."""
    form: str = "azure"
    """Format of the trace."""
    most: int = 1 << 17
    """Longest prompt or output that a log-normal draws, in tokens."""
    seed: int = 0

    def rows(self) -> list[TraceRow]:
        """The workload, the same for the same profile.

        Raises:
            UserError: the profile asks for what it does not say, or its trace is unreadable.
        """
        if self.count < 1:
            raise UserError(f"{self.count} requests; a run needs at least one", param="count")
        rng = np.random.default_rng(self.seed)
        if self.process == "trace":
            rows = self._traced(self.count)
            return rows if self.rate_hz is None else at_rate(rows, self.rate_hz)
        times = self._times(rng)
        if self.trace is not None:
            found = self._traced(None)
            picked = lengths.resampled(rng, found, self.count)
            return [replace(row, arrival_ns=at) for at, row in zip(times.tolist(), picked, strict=True)]
        prompts = self._lengths(rng, self.prompt)
        return lengths.workload(times, prompts, self._lengths(rng, self.output))

    def json(self) -> dict[str, Any]:
        """Its fields as plain JSON values, to note beside a result."""
        return asdict(self) | {"trace": None if self.trace is None else str(self.trace)}

    def _traced(self, limit: int | None) -> list[TraceRow]:
        if self.trace is None:
            raise UserError("the process `trace` needs a trace file", param="trace")
        return read_trace(self.trace, self.form, limit)

    def _times(self, rng: Generator) -> arrivals.Times:
        if self.process not in PROCESSES:
            raise UserError(
                f"no arrival process {self.process!r}; known are {', '.join(PROCESSES)}", "process"
            )
        if self.process == "closed":
            return np.zeros(self.count, np.int64)
        if self.rate_hz is None:
            raise UserError(f"the process {self.process} needs a rate", param="rate")
        if self.process == "gamma":
            return arrivals.gamma(rng, self.rate_hz, self.cv, self.count)
        if self.process == "burst":
            return arrivals.bursts(rng, self.rate_hz, self.burst, self.count)
        if self.process == "constant":
            return arrivals.constant(self.rate_hz, self.count)
        return arrivals.poisson(rng, self.rate_hz, self.count)

    def _lengths(self, rng: Generator, text: str) -> lengths.Lengths:
        """Lengths from their short form."""
        try:
            if text.startswith("lognormal:"):
                mean, cv = map(float, text.removeprefix("lognormal:").split(":"))
                return lengths.lognormal(rng, mean, cv, self.most, self.count)
            low, _, high = text.partition("-")
            if high:
                return lengths.uniform(rng, int(low), int(high), self.count)
            return lengths.fixed(int(low), self.count)
        except ValueError as error:
            raise UserError(
                f"cannot read the length {text!r}: write 128, 64-256 or lognormal:300:0.8"
            ) from error
