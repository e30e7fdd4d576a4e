"""How fast `plait plan` decides, and whether it decides as well as trying everything.

Llama-2-7B (roofline, A100) under lengths fitted to ShareGPT's means; two processes. 32 GPUs: seconds until
the first heat of the race is ranked (bounds and short runs) and until the final table; 1,024 GPUs: until the
final table. Then random cases of at most 40 candidates: is the goodput of the device that the search chose
within the interval of what exhaustive long runs with the same seeds choose?
"""

import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import numpy as np
from claim import Claim, arguments, at_least, at_most, finish, together

from plait.cost.catalog import device_named, shape_named
from plait.planner.cluster import Cluster
from plait.planner.fluid import ATTAINMENT
from plait.planner.plans import Plans
from plait.planner.published import Map
from plait.planner.search import Search, SearchConfig
from plait.spec.cluster import Link
from plait.spec.errors import UserError
from plait.spec.slo import Slo
from plait.workload.applications import application_named
from plait.workload.arrivals import poisson
from plait.workload.lengths import lognormal, workload
from plait.workload.trace import TraceRow

A100 = device_named("a100-80g")
LOCAL, REMOTE = Link(300e9, 5_000), Link(3.125e9, 30_000)
PROCESSES = 2
SMALL = SearchConfig(
    most_devices=4, most_count=2, probe_requests=100, requests=200, most_requests=200, seeds=3, runs=7
)
MOST_CANDIDATES = 40


def cluster(nodes: int, devices: int = 8) -> Cluster:
    """Of A100, NVLink inside nodes, 25 Gbit/s between them."""
    return Cluster(nodes, devices, A100, LOCAL, REMOTE)


def timed(nodes: int, rate_hz: float, seed: int, mapped: Map) -> tuple[float, float, int]:
    """Seconds until the provisional and the final table, and requests of a finalist."""
    rng = np.random.default_rng(seed)
    rows = application_named("sharegpt").rows(rng, poisson(rng, 4.0, 2000))
    provisional_s, begin_s = 0.0, time.perf_counter()
    config = SearchConfig(seed=seed)

    def show(stage: str, entries: object) -> None:
        nonlocal provisional_s
        if stage == "provisional":
            provisional_s = time.perf_counter() - begin_s

    plans = Plans(shape_named("llama-2-7b"), cluster(nodes))
    outcome = Search(plans, rows, Slo.parse("ttft=400ms,tpot=50ms"), rate_hz, config, mapped).run(show)
    return provisional_s, time.perf_counter() - begin_s, min(each.requests for each in outcome.entries)


def random_case(rng: np.random.Generator, mapped: Map) -> Search:
    """A small cluster, two lengths, two objectives and a rate, at random."""
    prompt, output = rng.integers(50, 1500), rng.integers(2, 40)
    rows: list[TraceRow] = workload(
        poisson(rng, 1.0, 300), lognormal(rng, prompt, 0.6, 4000, 300), lognormal(rng, output, 0.6, 400, 300)
    )
    model = str(rng.choice(["llama-2-7b", "llama-3-8b", "opt-13b"]))
    slo = Slo(int(rng.choice([250, 500, 1500])) * 10**6, int(rng.choice([30, 50, 100])) * 10**6)
    there = cluster(int(rng.choice([1, 2])), int(rng.choice([1, 2])))
    # Enough for one device, or a few.
    config = replace(SMALL, most_devices=there.devices, seed=int(rng.integers(1000)))
    rate_hz = float(rng.uniform(1, 6)) * there.devices * 400 / (prompt + 8 * output)
    return Search(Plans(shape_named(model), there), rows, slo, rate_hz, config, mapped)


def as_good(search: Search) -> bool | None:
    """Whether the search is as good as long runs of everything; None: nothing serves this case."""
    try:
        chosen = search.run().best
    except UserError:
        chosen = None
    longest = max(row.prompt_tokens + row.output_tokens for row in search.trace)
    able = search.able(longest)
    assert len(able) <= MOST_CANDIDATES
    near_hz = [0.5 * search.fluid.steady_hz(each) for each in able]
    every = search.measured(able, near_hz)
    best = min(every, key=lambda each: (search.aim.score(each.candidate, each.goodput_hz), each.candidate))
    if best.goodput_hz == 0 or best.devices > search.plans.cluster.devices:
        return None if chosen is None else chosen.devices <= search.plans.cluster.devices
    if chosen is None:
        return False
    if best.low_hz <= 0:
        return True  # its interval holds any goodput
    same_devices = chosen.devices <= search.aim.copies(best.low_hz) * best.candidate.devices
    return same_devices and chosen.per_device >= best.low_hz / best.candidate.devices


def agreement(cases: int, seed: int, mapped: Map) -> tuple[int, int]:
    """Cases in which the search was as good, and cases in which anything serves."""
    rng, good, judged = np.random.default_rng(seed), 0, 0
    while judged < cases:
        found = as_good(random_case(rng, mapped))
        judged += found is not None
        good += bool(found)
    return good, judged


def main() -> None:
    """See the module."""
    options = arguments(__doc__)
    parts: list[Claim] = []
    with ProcessPoolExecutor(PROCESSES) as pool:
        provisional_s, final_s, requests = timed(4, 20.0, options.seed, pool.map)
        parts.append(at_most("32 GPUs: seconds to a provisional winner", provisional_s, 5.0))
        parts.append(at_most("32 GPUs: seconds to the final table", final_s, 60.0))
        parts.append(at_least("requests of a finalist", requests, 3000))
        if not options.quick:
            parts.append(
                at_most("1,024 GPUs: seconds to the final table", timed(128, 2000.0, 0, pool.map)[1], 180.0)
            )
        good, judged = agreement(2 if options.quick else 100, options.seed, pool.map)
    parts.append(at_least(f"of {judged} random cases, as good as trying everything", good, judged))
    finish("planner_speed", together(f"planner: at {ATTAINMENT:.0%} attainment, 2 processes", parts), options)


if __name__ == "__main__":
    main()
