"""Elastic instances against static ones, live, and both against simulation.

Four paced instances: real workers compute a tiny model, and each answer is delivered when a stated cost model
says devices of their own would have given it. The load is mixed: short prompts, and some of 6,000 tokens.
Static instances cut prompts into chunks and decode beside them; elastic ones compute a long prompt together
and leave its keys on few of them. Both serve the same arrivals.

Beside, on a machine with two cores for it: SmolLM2-135M in bf16 on two instances with a core each, not paced;
groups take what was measured just before.

Held against a bar: percentiles of the simulation of the same requests, in percent of live. Near saturation
0.1 ms more in every step moves the 90th percentile of one minute by a third, up or down, so several minutes
count together, and each is simulated with steps that are some tenths of a millisecond longer. Reported: the
90th percentile of the time to first token and the requests a second that met their objectives, elastic and
static.
"""

import asyncio
import os
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import claim
import numpy as np

sys.path.append(str(Path(__file__).parents[1]))

from sim_vs_live import Pair, live_runs
from tests.tiny import tiny_folder

from plait.cost.by_group import ByGroup
from plait.cost.fitted import Fitted
from plait.runtime.fleet import FleetConfig
from plait.runtime.group_times import GroupGrid, scaling_base
from plait.runtime.setup import ServeConfig
from plait.serving.elasticity import ElasticConfig
from plait.serving.manager import ManagerConfig
from plait.sim.scenario import Scenario
from plait.spec.cluster import Instance, Placement, Role
from plait.spec.slo import Slo
from plait.workload.result import Recorder, RequestRecord, Summary
from plait.workload.trace import TraceRow

INSTANCES, SLOTS = 4, 1 << 14
STATED = ByGroup(
    {
        n: Fitted(10e6 + 5e6 * (n - 1), 0.15e6 / n, 50.0 / n, 0.0, 12e6, 2e3, 0.25e6)
        for n in range(1, INSTANCES + 1)
    }
)
"""A prompt of 6,000 tokens takes 2.7 s on one instance and 0.7 s on four, one of 100 tokens 25 ms."""
LONG, SHARE = 6000, 0.05
MINUTES = {6.0: 2, 12.0: 5}
"""Loads by requests a second."""
LONGER_NS = (0.0, 1e5, 2e5, 3e5)
"""What each step of a simulation takes longer."""
SLO = Slo(500_000_000, 60_000_000)
ELASTIC = ElasticConfig(STATED.widths, 16e6, chunk_ns=300e6, ttft_ns=SLO.ttft_ns, tpot_ns=SLO.tpot_ns)
NEAR = 10.0
PINNED, SLOW_HZ, SLOW = 2, 0.4, Slo(5_000_000_000, 150_000_000)
"""Instances, rate and objectives where nothing is paced."""


@dataclass(frozen=True)
class Way:
    """How the instances serve."""

    name: str
    role: Role

    @property
    def manager(self) -> ManagerConfig:
        """Of both worlds."""
        placement = Placement(tuple(Instance(i, self.role) for i in range(INSTANCES)))
        return ManagerConfig(placement=placement, elastic=ELASTIC)

    def live(self, folder: Path, loads: list[list[TraceRow]]) -> list[list[RequestRecord]]:
        """What callers of real workers see."""
        fleet = FleetConfig(instances=INSTANCES)
        config = ServeConfig(str(folder), kv_tokens=SLOTS, manager=self.manager, pace=STATED, fleet=fleet)
        return asyncio.run(live_runs(config, loads))

    def simulated(self, sent: list[RequestRecord], longer_ns: float) -> list[RequestRecord]:
        """The same requests in virtual time, with each step so much longer."""
        recorder, manager = Recorder(), self.manager
        rows = [TraceRow(each.arrival_ns, each.prompt_tokens, each.output_tokens) for each in sent]
        times = ByGroup(
            {
                size: replace(one, prefill_ns=one.prefill_ns + longer_ns, decode_ns=one.decode_ns + longer_ns)
                for size, one in STATED.models.items()
            }
        )
        Scenario(manager.placement, times, SLOTS, manager).run(rows, [recorder.see])
        return recorder.records

    def pairs(self, folder: Path, seconds: float, seed: int, quick: bool) -> dict[float, Pair]:
        """By rate: all its loads, live and simulated."""
        counts = {rate: 1 if quick else count for rate, count in MINUTES.items()}
        rates = [rate for rate, count in counts.items() for _ in range(count)]
        loads = [mixed(rate, seconds, seed + at) for at, rate in enumerate(rates)]
        found: dict[float, tuple[list[RequestRecord], list[RequestRecord]]]
        found = {rate: ([], []) for rate in counts}
        for rate, sent in zip(rates, self.live(folder, loads), strict=True):
            live, simulated = found[rate]
            live += sent
            for longer_ns in LONGER_NS:
                simulated += self.simulated(sent, longer_ns)
        return {
            rate: Pair(f"{self.name}, {rate:g}/s, paced", Summary.of(live, SLO), Summary.of(simulated, SLO))
            for rate, (live, simulated) in found.items()
        }


WAYS = (Way("elastic", Role.ELASTIC), Way("static", Role.MIXED))


def mixed(rate_hz: float, seconds: float, seed: int) -> list[TraceRow]:
    """Poisson arrivals of short prompts and of long ones."""
    rng = np.random.default_rng(seed)
    count = int(rate_hz * seconds)
    arrivals_s = np.cumsum(rng.exponential(1 / rate_hz, count))
    prompts = np.clip(rng.lognormal(np.log(100), 0.6, count), 8, 400).astype(int)
    prompts[rng.permutation(count)[: max(1, round(SHARE * count))]] = LONG
    outputs = np.clip(rng.lognormal(np.log(24), 0.6, count), 2, 120).astype(int)
    return [
        TraceRow(int(at_s * 1e9), int(prompt), int(output))
        for at_s, prompt, output in zip(arrivals_s, prompts, outputs, strict=True)
    ]


def parts(pairs: dict[tuple[str, float], Pair]) -> list[claim.Claim]:
    """Simulation beside live, elastic beside static."""
    found = []
    for pair in pairs.values():
        off = pair.off()
        worst = max(off, key=lambda name: off[name])
        found.append(claim.at_most(f"{pair.name}: {worst} off by, %", off[worst], NEAR))
    for rate in MINUTES:
        elastic, static = (pairs[way.name, rate].live for way in WAYS)
        found += compared(f"paced, {rate:g}/s", rate, elastic, static)
    return found


def compared(said: str, rate_hz: float, elastic: Summary, static: Summary) -> list[claim.Claim]:
    """Elastic over static."""
    ours, theirs = rate_hz * elastic.attainment, rate_hz * static.attainment
    first, second = elastic.ttft_ms.p90, static.ttft_ms.p90
    late = f"{said}: P90 TTFT of {first:.0f} over {second:.0f} ms"
    good = f"{said}: goodput of {ours:.2f} over {theirs:.2f}/s"
    return [
        claim.Claim(late, first / second, None, True),
        claim.Claim(good, ours / theirs if theirs else float("inf"), None, True),
    ]


def unpaced(seed: int) -> list[claim.Claim]:
    """Elastic beside static on two instances whose time is their own."""
    config = ServeConfig("smollm2-135m", kv_tokens=SLOTS, dtype="bfloat16", threads=1)
    base = asyncio.run(scaling_base(config, GroupGrid(), lambda said: None))
    elastic = ElasticConfig(
        base.widths(1), base.decode_ns(1), chunk_ns=1e9, ttft_ns=SLOW.ttft_ns, tpot_ns=SLOW.tpot_ns
    )
    found = {}
    for way in WAYS:
        placement = Placement(tuple(Instance(i, way.role) for i in range(PINNED)))
        manager = ManagerConfig(placement=placement, elastic=elastic)
        there = replace(config, manager=manager, fleet=FleetConfig(instances=PINNED))
        load = mixed(SLOW_HZ, 100.0, seed)
        (records,) = asyncio.run(live_runs(there, [load], []))
        found[way.name] = Summary.of(records, SLOW)
    said = f"SmolLM2-135M, not paced, {PINNED} instances, {SLOW_HZ:g}/s"
    return compared(said, SLOW_HZ, found["elastic"], found["static"])


def main() -> None:
    options = claim.arguments(__doc__)
    seconds = 6.0 if options.quick else 60.0
    pairs = {}
    with tempfile.TemporaryDirectory() as root:
        folder = tiny_folder(Path(root), max_position_embeddings=8192)
        for way in WAYS:
            for rate, pair in way.pairs(folder, seconds, options.seed, options.quick).items():
                pairs[way.name, rate] = pair
    found = parts(pairs)
    if not options.quick and len(os.sched_getaffinity(0)) >= PINNED:
        found += unpaced(options.seed)
    claim.finish("elastic_live", claim.together("elastic instances, live and simulated", found), options)


if __name__ == "__main__":
    main()
