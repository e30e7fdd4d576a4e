"""Do a few very long prompts starve the short ones? Elastic instances, simulated.

LLaMA3-8B on 16 A100 (llama_world.py). Short requests have the lengths of the Azure conversations; 5 % of
all requests have prompts of 256 to 400 thousand tokens. At 70 % of the highest rate at which 90 % of this mix
meet both objectives (5 times what each takes alone), the short ones are served with and without the long
ones, at the same times, and the long ones alone. (Medha, arXiv 2409.17264, measured LoongServe's P90 at 174
times.)
"""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import claim
import numpy as np
from llama_world import INSTANCES, SHARE, TIMES, alone_ns, groups, scales, slots, widths

from plait.serving.admission import AdmissionConfig
from plait.serving.batcher import BatcherConfig
from plait.serving.elasticity import ElasticConfig
from plait.serving.manager import ManagerConfig
from plait.sim.scenario import Scenario
from plait.spec.cluster import Instance, Placement, Role
from plait.workload import arrivals
from plait.workload.result import Recorder, RequestRecord
from plait.workload.trace import TraceRow, at_rate, read_trace

TRACE = Path(__file__).parents[1].parent / "shared/data/traces/AzureLLMInferenceTrace_conv.csv"
LONG_SHARE, LONGEST = 0.05, 400_000
LONG = 256_000
LOAD = 0.7
STEP = 1.05


@dataclass(frozen=True)
class Run:
    """The mix of one seed."""

    seed: int
    count: int
    near_hz: float = 0.0

    def rows(self, rate_hz: float) -> list[TraceRow]:
        """Requests; who is long does not depend on the rate."""
        rng = np.random.default_rng(self.seed)
        lengths = read_trace(TRACE, "azure", 10_000)
        times = arrivals.poisson(rng, 1.0, self.count).tolist()
        drawn = [lengths[i] for i in rng.integers(len(lengths), size=self.count)]
        rows = [replace(row, arrival_ns=at) for row, at in zip(drawn, times, strict=True)]
        for i in np.flatnonzero(rng.random(self.count) < LONG_SHARE):
            rows[i] = TraceRow(rows[i].arrival_ns, int(rng.integers(LONG, LONGEST)), rows[i].output_tokens)
        return at_rate(rows, rate_hz)

    def highest_hz(self) -> float:
        """Rate at which just enough requests meet their objectives."""
        low, high = (self.near_hz / 1.5, self.near_hz * 1.5) if self.near_hz else (1 / 32, 32.0)
        return claim.highest(self.holds, low, high, STEP)

    def holds(self, rate_hz: float) -> bool:
        """Whether enough requests meet both objectives."""
        return float(np.mean(scales(served(self.rows(rate_hz))) <= TIMES)) >= SHARE

    def figures(self) -> Mapping[str, float]:
        """P90 of TTFT with over without the other kind."""
        rate_hz = self.highest_hz()
        rows = self.rows(LOAD * rate_hz)
        short, long = ([row for row in rows if (row.prompt_tokens >= LONG) == kind] for kind in (False, True))
        both = served(rows)
        mixed = [[r for r in both if (r.prompt_tokens >= LONG) == kind] for kind in (False, True)]
        return {
            "rate": rate_hz,
            "short": p90_ms(mixed[0]) / p90_ms(served(short)),
            "long": p90_ms(mixed[1]) / p90_ms(served(long)),
            "short alone": p90_ms(served(short)),
            "long alone": p90_ms(served(long)),
        }


def served(rows: Sequence[TraceRow]) -> list[RequestRecord]:
    """By elastic instances."""
    config = ManagerConfig(
        admission=AdmissionConfig(max_queue=1 << 20, max_rows=1024),
        batcher=BatcherConfig(prefix_cache=False),
        elastic=ElasticConfig(widths(), decode_ns=20e6, tpot_ns=TIMES * alone_ns(1, 1)[1]),
    )
    placement = Placement(tuple(Instance(i, Role.ELASTIC) for i in range(INSTANCES)))
    recorder = Recorder()
    first_ns = rows[0].arrival_ns
    moved = [replace(row, arrival_ns=row.arrival_ns - first_ns) for row in rows]
    Scenario(placement, groups(), slots(), config).run(moved, [recorder.see])
    return list(recorder.records)


def p90_ms(records: Sequence[RequestRecord]) -> float:
    """Of TTFT."""
    return float(np.percentile([record.ttft_ns / 1e6 for record in records], 90))


def figures(run: Run) -> Mapping[str, float]:
    return run.figures()


def main() -> None:
    """See the module."""
    options = claim.arguments(__doc__)
    seeds = range(options.seed, options.seed + (2 if options.quick else 5))
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        found = list(pool.map(figures, [Run(seed, 300 if options.quick else 2_000) for seed in seeds]))

    def of(name: str) -> tuple[float, tuple[float, float]]:
        values = [each[name] for each in found]
        return median(values), (min(values), max(values))

    short, long = of("short"), of("long")
    parts = [
        claim.reported("highest rate of the mix, requests/s", *of("rate")),
        claim.reported("short ones without long ones, P90 TTFT, ms", *of("short alone")),
        claim.reported("long ones alone, P90 TTFT, ms", *of("long alone")),
        replace(
            claim.at_most("short ones' P90 TTFT, with over without long ones", short[0], 2.0),
            interval=short[1],
        ),
        replace(
            claim.at_most("long ones' P90 TTFT, with over without short ones", long[0], 1.5),
            interval=long[1],
        ),
    ]
    claim.finish("convoy", claim.together("long prompts among short ones, simulated", parts), options)


if __name__ == "__main__":
    main()
