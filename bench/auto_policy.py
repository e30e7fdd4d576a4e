"""Is `--policy auto` ever worse than a policy chosen by hand?

A grid of load (requests/s of the whole cluster) and length mix (mean prompt and mean answer) on 4 A100. Each
policy's winner is chosen on the first half of a trace and judged on the second: what its copies carry of the
load there, per device that they take. `auto` must come within 2 % of the best pure policy in every cell.
"""

from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from claim import Claim, arguments, at_least, finish, reported, together

from plait.cost.catalog import device_named, shape_named
from plait.planner.cluster import Cluster
from plait.planner.plans import Plans
from plait.planner.published import Map
from plait.planner.race import Entry
from plait.planner.search import Policy, Search, SearchConfig
from plait.spec.cluster import Link
from plait.spec.errors import UserError
from plait.spec.slo import Slo
from plait.workload.arrivals import poisson
from plait.workload.lengths import lognormal, workload
from plait.workload.trace import TraceRow

CLUSTER = Cluster(1, 4, device_named("a100-80g"), Link(300e9, 5_000), Link(3.125e9, 30_000))
SLO = Slo.parse("ttft=500ms,tpot=20ms")
LOADS = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Of what 4 devices would carry in a run without end, by bounds; queues leave about half of it."""
MIXES = ((1500, 16), (1000, 32), (600, 48), (300, 64), (150, 80))
"""Mean tokens of prompts and answers."""
BAR = 0.98
FULL = SearchConfig(most_devices=4, requests=500, most_requests=700, probe_requests=200, seeds=3, runs=7)
QUICK = SearchConfig(most_devices=4, requests=250, most_requests=250, probe_requests=120, seeds=2, runs=6)


@dataclass(frozen=True)
class Cell:
    """What each policy's choice bears on the second half, as requests/s of a device."""

    chosen: str
    goodput_hz: Mapping[Policy, float]
    """Of the load asked for."""
    most_hz: Mapping[Policy, float]
    """Of any load: policies that carry the same load with as many devices differ here."""


def over_pure(hz: Mapping[Policy, float]) -> float:
    """`auto` over the best pure policy; 0 where none carries the load, which shows nothing."""
    pure = max(each for policy, each in hz.items() if policy is not Policy.AUTO)
    return hz[Policy.AUTO] / pure if pure else 0.0


def halves(mix: tuple[int, int], seed: int) -> tuple[list[TraceRow], list[TraceRow]]:
    """A trace cut in two."""
    rng, count = np.random.default_rng(seed), 2000
    prompts, outputs = (lognormal(rng, mean, 0.6, 3000, count) for mean in mix)
    rows = workload(poisson(rng, 1.0, count), prompts, outputs)
    return rows[: count // 2], rows[count // 2 :]


def cell(load: float, mix: tuple[int, int], config: SearchConfig, mapped: Map) -> Cell:
    """Choose on the first half, judge on the second."""
    first, second = halves(mix, config.seed)
    plans = Plans(shape_named("llama-2-7b"), CLUSTER)
    rate_hz = load * CLUSTER.devices * Search(plans, first, SLO, 1.0, config).steady_per_device_hz()
    best: dict[Policy, Entry] = {}
    for policy in Policy:
        with suppress(UserError):  # it cannot carry this load at all
            search = Search(plans, first, SLO, rate_hz, replace(config, policy=policy), mapped)
            best[policy] = search.run().best
    chosen = list(dict.fromkeys(each.candidate for each in best.values()))
    near_hz = {each.candidate: each.goodput_hz for each in best.values()}
    judge = Search(plans, second, SLO, rate_hz, replace(config, seed=config.seed + 100), mapped)
    judged = judge.measured(chosen, [near_hz[each] for each in chosen])
    borne_hz = {each.candidate: each.goodput_hz for each in judged}
    found, most = dict.fromkeys(Policy, 0.0), dict.fromkeys(Policy, 0.0)
    for policy, each in best.items():
        most[policy] = borne_hz[each.candidate] * each.copies / each.devices
        found[policy] = min(most[policy], rate_hz / each.devices)
    return Cell(str(best[Policy.AUTO].candidate) if Policy.AUTO in best else "nothing", found, most)


def main() -> None:
    """See the module."""
    options = arguments(__doc__)
    loads, mixes = (LOADS[1:3], MIXES[1:2]) if options.quick else (LOADS, MIXES)
    config = replace(QUICK if options.quick else FULL, seed=options.seed)
    parts: list[Claim] = []
    ratios: list[float] = []
    with ProcessPoolExecutor(2) as pool:
        for mix in mixes:
            for load in loads:
                one = cell(load, mix, config, pool.map)
                label = f"{mix[0]}/{mix[1]} tokens, load {load}: {one.chosen}"
                parts.append(at_least(label, over_pure(one.goodput_hz), BAR))
                ratios.append(over_pure(one.most_hz))
    parts.append(
        reported("the same, of any load a device", float(np.median(ratios)), (min(ratios), max(ratios)))
    )
    finish("auto_policy", together("auto is within 2 % of the best pure policy", parts), options)


if __name__ == "__main__":
    main()
