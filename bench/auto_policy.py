"""Is `--policy auto` ever worse than a policy chosen by hand?

A grid of load (requests/s of the whole cluster) and length mix (mean prompt to mean answer) on 4 A100. Each
policy's winner is chosen on the first half of a trace and judged on the second: the goodput of the whole
cluster filled with its copies. `auto` must come within 2 % of the best pure policy in every cell.
"""

from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
from claim import Claim, arguments, at_least, finish, reported, together

from plait.cost.catalog import device_named, shape_named
from plait.planner.candidate import Candidate
from plait.planner.cluster import Cluster
from plait.planner.plans import Plans
from plait.planner.published import Map
from plait.planner.search import Policy, Search, SearchConfig
from plait.spec.cluster import Link
from plait.spec.errors import UserError
from plait.spec.slo import Slo
from plait.workload.arrivals import poisson
from plait.workload.lengths import lognormal, workload
from plait.workload.trace import TraceRow

CLUSTER = Cluster(1, 4, device_named("a100-80g"), Link(300e9, 5_000), Link(3.125e9, 30_000))
SLO = Slo.parse("ttft=500ms,tpot=40ms")
LOADS = (0.15, 0.3, 0.45, 0.6, 0.75)
"""Of what 4 devices bear at best, by bounds."""
MIXES = ((1500, 20), (1000, 50), (600, 100), (300, 150), (100, 200))
"""Mean tokens of prompts and answers."""
BAR = 0.98


@dataclass(frozen=True)
class Cell:
    """What each policy's choice bears on the second half, as requests/s of a device."""

    chosen: str
    goodput_hz: Mapping[Policy, float]

    @property
    def ratio(self) -> float:
        """Of `auto` to the best pure policy; at least 1 where it is the best."""
        pure = max(hz for policy, hz in self.goodput_hz.items() if policy is not Policy.AUTO)
        return self.goodput_hz[Policy.AUTO] / pure if pure else 1.0


def halves(mix: tuple[int, int], seed: int) -> tuple[list[TraceRow], list[TraceRow]]:
    """A trace cut in two."""
    rng, count = np.random.default_rng(seed), 2000
    prompts, outputs = (lognormal(rng, mean, 0.6, 3000, count) for mean in mix)
    rows = workload(poisson(rng, 1.0, count), prompts, outputs)
    return rows[: count // 2], rows[count // 2 :]


def cell(load: float, mix: tuple[int, int], seed: int, mapped: Map) -> Cell:
    """Choose on the first half, judge on the second."""
    first, second = halves(mix, seed)
    plans = Plans(shape_named("llama-2-7b"), CLUSTER)
    probing = Search(plans, first, SLO, 1.0, _config(Policy.AUTO, seed), mapped)
    rate_hz = load * CLUSTER.devices * probing.most_per_device_hz()
    found: dict[Policy, float] = {}
    chosen: dict[Policy, Candidate] = {}
    judge = Search(plans, second, SLO, rate_hz, _config(Policy.AUTO, seed + 100), mapped)
    for policy in Policy:
        try:
            best = Search(plans, first, SLO, rate_hz, _config(policy, seed), mapped).run().best
        except UserError:
            found[policy] = 0.0  # it cannot carry this load at all
            continue
        chosen[policy] = best.candidate
        if best.candidate not in [each for other, each in chosen.items() if other is not policy]:
            judged = judge.measured([best.candidate], [best.goodput_hz])[0]
            found[policy] = min(judged.goodput_hz * best.copies, rate_hz) / best.devices
        else:
            twin = next(other for other, each in chosen.items() if each == best.candidate)
            found[policy] = found[twin]
    return Cell(str(chosen.get(Policy.AUTO, "nothing")), found)


def _config(policy: Policy, seed: int) -> SearchConfig:
    return SearchConfig(policy=policy, most_devices=4, requests=600, most_requests=600, seed=seed)


def main() -> None:
    """See the module."""
    options = arguments(__doc__)
    loads, mixes = (LOADS[2:3], MIXES[::4]) if options.quick else (LOADS, MIXES)
    parts: list[Claim] = []
    with ProcessPoolExecutor(2) as pool:
        for mix in mixes:
            for load in loads:
                one = cell(load, mix, options.seed, pool.map)
                parts.append(at_least(f"{mix[0]}/{mix[1]} tokens, load {load}: {one.chosen}", one.ratio, BAR))
    ratios = [part.value for part in parts]
    parts.append(
        reported("auto over the best pure policy", float(np.median(ratios)), (min(ratios), max(ratios)))
    )
    finish("auto_policy", together("auto is within 2 % of the best pure policy", parts), options)


if __name__ == "__main__":
    main()
