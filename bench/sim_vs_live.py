"""Simulation against live: the same arrivals, the same stated cost, the same placement.

Paced instances: real workers compute a tiny model, and each answer is delivered when a stated cost model
says a device of its own would have given it; keys and values travel at a stated bandwidth. A simulation of
the same workload with the same cost must show the same latencies: what is compared is queueing, batching,
hand-overs and everything that a live loop adds. Latencies are those that callers see.

Reported beside: two unpaced instances, each on a core of its own, against a simulation whose step times are
fitted to that very run. A driver and a load generator share the two cores with them.
"""

import asyncio
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import claim
import numpy as np

sys.path.append(str(Path(__file__).parents[1]))

from tests.tiny import VOCAB, tiny_folder

from plait.cost.cost import Cost
from plait.cost.fitted import Fitted
from plait.runtime.ask import Ask
from plait.runtime.engine import Engine, shape_of
from plait.runtime.fleet import FleetConfig, WorkerFleet
from plait.runtime.room import stored_shape
from plait.runtime.setup import ServeConfig, open_engine
from plait.serving.manager import ManagerConfig
from plait.sim.copies import Network
from plait.sim.measured import timings
from plait.sim.scenario import Scenario
from plait.spec.cluster import Instance, Link, Placement, Role
from plait.spec.sampling import SamplingParams
from plait.spec.slo import Slo
from plait.workload.journal import Entry
from plait.workload.profile import Profile
from plait.workload.result import Recorder, RequestRecord, Summary
from plait.workload.trace import TraceRow

STATED = Fitted(10e6, 0.15e6, 50.0, 0.0, 12e6, 2e3, 0.25e6)
"""A prompt of 100 tokens takes 25 ms, a decode step of 8 rows 16 ms: slow enough that the tiny model's real
steps are always done sooner."""
LINK = Link(5e6, 1_000_000)
"""A prompt of 100 tokens travels for about 11 ms."""
SLOTS = 8192
MIXED, PREFILL, DECODE = Role.MIXED, Role.PREFILL, Role.DECODE
PLACEMENTS = {
    # roles, and rates in requests a second
    "2 mixed": ((MIXED, MIXED), (15.0, 35.0, 50.0)),
    "1 prefill + 1 decode": ((PREFILL, DECODE), (10.0, 20.0, 30.0)),
    "1 prefill + 1 decode + 1 mixed": ((PREFILL, DECODE, MIXED), (20.0, 40.0, 55.0)),
}
SLO = Slo(120_000_000, 22_000_000)
NEAR, POINTS = 10.0, 3.0
UNPACED_HZ = (5.0, 15.0)


@dataclass(frozen=True)
class Pair:
    """One workload in both worlds."""

    name: str
    live: Summary
    simulated: Summary

    def off(self) -> dict[str, float]:
        """How far each of the four percentiles is from live, in percent of it."""
        return {
            f"{latency} {percentile}": 100 * abs(getattr(model, percentile) / getattr(real, percentile) - 1)
            for latency, real, model in (
                ("TTFT", self.live.ttft_ms, self.simulated.ttft_ms),
                ("TPOT", self.live.tpot_ms, self.simulated.tpot_ms),
            )
            for percentile in ("p50", "p90")
        }

    def parts(self) -> list[claim.Claim]:
        """The farthest percentile, and the attainment."""
        off = self.off()
        worst = max(off, key=lambda name: off[name])
        points = 100 * abs(self.live.attainment - self.simulated.attainment)
        return [
            claim.at_most(f"{self.name}: {worst} off by, %", off[worst], NEAR),
            claim.at_most(
                f"{self.name}: attainment ({self.live.attainment:.1%} live) off by, points", points, POINTS
            ),
        ]


def workload(rate_hz: float, seconds: float, seed: int) -> list[TraceRow]:
    """Poisson arrivals, and lengths that fit the tiny model."""
    lengths = {"prompt": "lognormal:100:0.6", "output": "lognormal:24:0.6", "most": 240}
    return Profile("poisson", rate_hz, count=int(rate_hz * seconds), seed=seed, **lengths).rows()


async def served(engine: Engine, rows: Sequence[TraceRow], seed: int) -> list[RequestRecord]:
    """Send the workload on its schedule; what its callers see. A request arrives when it was sent, which is
    up to a millisecond after it was due; the simulation gets that time."""
    loop, rng = asyncio.get_running_loop(), np.random.default_rng(seed)
    prompts = [tuple(rng.integers(VOCAB, size=row.prompt_tokens).tolist()) for row in rows]
    start_s = loop.time() + 0.1

    async def one(number: int, row: TraceRow) -> RequestRecord:
        await asyncio.sleep(start_s + row.arrival_ns / 1e9 - loop.time())
        wish = SamplingParams(max_tokens=row.output_tokens, temperature=0.0, ignore_eos=True)
        times: list[int] = []
        arrival_ns = int((loop.time() - start_s) * 1e9)
        async for piece in engine.submit(Ask(prompts[number], wish)):
            now_ns = int((loop.time() - start_s) * 1e9)
            if piece.tokens:
                times.append(now_ns)
            reason = piece.finish
        assert len(times) == row.output_tokens, "a request was cut short"
        sizes = arrival_ns, row.prompt_tokens, row.output_tokens
        return RequestRecord(number, *sizes, tuple(times), now_ns, reason.value)

    return list(await asyncio.gather(*(one(number, row) for number, row in enumerate(rows))))


async def until(engine: Engine, holds: Callable[[], bool]) -> None:
    """Wait for a call of the core after which this holds."""
    seen = asyncio.Event()

    def look(*_: object) -> None:
        if holds():
            seen.set()

    engine.watch(look)
    look()
    await seen.wait()
    engine.driver.observers.remove(look)


async def live_runs(
    config: ServeConfig, loads: Sequence[list[TraceRow]], journal: list[Entry] | None = None
) -> list[list[RequestRecord]]:
    """Serve one workload after another, after a few requests that nobody counts. With a `journal` to fill,
    each worker gets a core of its own."""
    engine = open_engine(config)
    try:
        await engine.start()
        await until(engine, lambda: len(engine.core.seats) == config.fleet.instances)
        await served(engine, loads[0][:20], 0)
        if journal is not None:
            _pin(engine)
            await until(engine, lambda: engine.core.quiet)
            engine.watch(lambda now_ns, event, said: journal.append(Entry(now_ns, event, tuple(said))))
        found = []
        for number, rows in enumerate(loads, 1):
            await until(engine, lambda: engine.core.quiet)
            found.append(await served(engine, rows, number))
        await until(engine, lambda: engine.core.quiet)
        return found
    finally:
        await engine.close()


def _pin(engine: Engine) -> None:
    """Give each worker a core of its own."""
    assert isinstance(engine.fleet, WorkerFleet)
    for core, member in zip(sorted(os.sched_getaffinity(0)), engine.fleet.members.values(), strict=False):
        for thread in os.listdir(f"/proc/{member.pid}/task"):
            os.sched_setaffinity(int(thread), {core})


def simulated(
    placement: Placement, cost: Cost, network: Network | None, sent: Sequence[RequestRecord]
) -> list[RequestRecord]:
    """The same requests in virtual time, each of which arrives when it did."""
    recorder = Recorder()
    rows = [TraceRow(each.arrival_ns, each.prompt_tokens, each.output_tokens) for each in sent]
    Scenario(placement, cost, SLOTS, network=network).run(rows, [recorder.see])
    return recorder.records


def paced(folder: Path, name: str, seconds: float, seed: int) -> list[Pair]:
    """One placement at its rates, in both worlds."""
    roles, rates = PLACEMENTS[name]
    placement = Placement(tuple(Instance(id, role) for id, role in enumerate(roles)))
    config = ServeConfig(
        model=str(folder),
        kv_tokens=SLOTS,
        manager=ManagerConfig(placement=placement),
        pace=STATED,
        pace_link=LINK,
        fleet=FleetConfig(instances=len(roles)),
    )
    loads = [workload(rate, seconds, seed + at) for at, rate in enumerate(rates)]
    real = asyncio.run(live_runs(config, loads))
    shape = stored_shape(shape_of(folder), "float32", "auto")
    network = Network(shape.kv_bytes_per_token, local=LINK, remote=LINK)
    return [
        Pair(
            f"{name}, {rate:g}/s",
            Summary.of(records, SLO),
            Summary.of(simulated(placement, STATED, network, records), SLO),
        )
        for rate, records in zip(rates, real, strict=True)
    ]


def unpaced(root: Path, seconds: float, seed: int) -> list[claim.Claim]:
    """Two instances as fast as they are, each on a core; step times are fitted to this very run."""
    folder = tiny_folder(root / "larger", hidden_size=512, intermediate_size=1536, num_hidden_layers=8)
    placement = Placement.colocated(2)
    config = ServeConfig(model=str(folder), kv_tokens=SLOTS, fleet=FleetConfig(instances=2))
    loads = [workload(rate, seconds, seed + at) for at, rate in enumerate(UNPACED_HZ)]
    entries: list[Entry] = []
    real = asyncio.run(live_runs(config, loads, entries))
    fitted = Fitted.fit(timings(entries))
    found = []
    for rate, records in zip(UNPACED_HZ, real, strict=True):
        pair = Pair(
            f"unpaced, 2 mixed on a core each, {rate:g}/s",
            Summary.of(records, SLO),
            Summary.of(simulated(placement, fitted, None, records), SLO),
        )
        for name, off in pair.off().items():
            found.append(claim.Claim(f"{pair.name}: {name} off by, %", off, None, True))
    return found


def main() -> None:
    options = claim.arguments(__doc__)
    seconds = 3.0 if options.quick else 12.0
    parts = []
    with tempfile.TemporaryDirectory() as root:
        folder = tiny_folder(Path(root))
        for name in PLACEMENTS:
            for pair in paced(folder, name, seconds, options.seed):
                parts += pair.parts()
        parts += unpaced(Path(root), seconds, options.seed)
    claim.finish("sim_vs_live", claim.together("simulation against live instances", parts), options)


if __name__ == "__main__":
    main()
