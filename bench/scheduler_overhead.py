"""The scheduler's price: how long one `handle` takes, how large a cell may be, how fast the simulator is.

The population is held constant: 16 instances run as many requests as they may, about 1,000 wait, and a new
one arrives whenever one ends. Every call of `handle` in that state is timed, collections of garbage included.
"""

import gc
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from statistics import fmean, median
from time import perf_counter_ns

import claim
import numpy as np

from plait.cost.catalog import llama_7b_on_a100
from plait.serving.admission import AdmissionConfig
from plait.serving.manager import GlobalManager, ManagerConfig
from plait.sim.scenario import Scenario
from plait.sim.workers import Arrival, VirtualWorkers
from plait.sim.world import World
from plait.spec.cluster import Placement
from plait.spec.command import Command, End, Wake
from plait.spec.event import Arrived, Drain, Event, WorkerUp
from plait.spec.request import Request
from plait.spec.step import Step
from plait.workload.profile import Profile
from plait.workload.result import Recorder

INSTANCES, ROWS, WAITING = 16, 65, 1000
"""65 rows on each of 16 instances: 1,040 seats, of which some are empty until the next event."""
CELL_SHARE = 0.5
"""A cell may spend half a core on deciding."""


@dataclass(frozen=True)
class Calls:
    """Timed calls of `handle`, and the population that they were made with."""

    ns: tuple[int, ...]
    running: int
    """Fewest requests on instances while calls were timed."""
    waiting: int
    """Fewest requests in the queue meanwhile."""
    tokens: int
    """Tokens drawn meanwhile."""


class Ticker:
    """A core that only asks to be woken, so that what is timed is the loop of the world."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def handle(self, event: Event, now_ns: int) -> list[Command]:
        self.left -= 1
        return [Wake(now_ns + 10)] if self.left > 0 else []


def requests(seed: int, total: int) -> list[Arrival]:
    """Chat-like lengths; arrival times are the closed loop's own."""
    lengths = {"prompt": "lognormal:512:0.8", "output": "lognormal:200:0.8"}
    profile = Profile("closed", count=total, seed=seed, **lengths)
    return [
        Arrival(0, Request(number, row.prompt_tokens, row.output_tokens + 50), row.output_tokens)
        for number, row in enumerate(profile.rows())
    ]


def timed_calls(seed: int, warm: int, calls: int) -> Calls:
    """Run the closed loop: `warm` events untimed, then `calls` of them."""
    population = INSTANCES * ROWS + WAITING
    arrivals = requests(seed, population + warm + calls)
    cost = llama_7b_on_a100()
    hands = VirtualWorkers(cost, arrivals)
    core = GlobalManager(ManagerConfig(admission=AdmissionConfig(max_rows=ROWS)))
    for instance in range(INSTANCES):
        core.handle(WorkerUp(instance, 0, cost.kv_slots()), instance)
    fresh = iter(arrivals)
    now, seq = INSTANCES, count()
    heap: list[tuple[int, int, Event | Step]] = [
        (now, next(seq), Arrived(next(fresh).request)) for _ in range(population)
    ]
    ns: list[int] = []
    running = waiting = population
    tokens = 0
    gc.collect()
    for handled in range(warm + calls):
        due, _, item = heapq.heappop(heap)
        event = hands.answer(item) if isinstance(item, Step) else item
        assert event is not None, "no worker is lost here"
        now = max(due, now + 1)
        begun = perf_counter_ns()
        commands = core.handle(event, now)
        spent = perf_counter_ns() - begun
        _carry_out(commands, heap, hands, now, seq, fresh)
        if handled >= warm:
            ns.append(spent)
            tokens += len(event.tokens) if isinstance(item, Step) else 0
            queued = len(core.admission)
            waiting, running = min(waiting, queued), min(running, len(core.lives) - queued)
    return Calls(tuple(ns), running, waiting, tokens)


def _carry_out(
    commands: Sequence[Command],
    heap: list[tuple[int, int, Event | Step]],
    hands: VirtualWorkers,
    now: int,
    seq: Iterator[int],
    fresh: Iterator[Arrival],
) -> None:
    for command in commands:
        if isinstance(command, Step):
            heapq.heappush(heap, (hands.step_end_ns(command, now), next(seq), command))
        elif isinstance(command, End):
            heapq.heappush(heap, (now, next(seq), Arrived(next(fresh).request)))


def bare_events_per_s(events: int) -> float:
    """The world's loop with a core that does nothing."""
    world = World(Ticker(events), VirtualWorkers(llama_7b_on_a100(), []))
    begun = perf_counter_ns()
    handled = world.run([(0, Drain())])
    return handled / (perf_counter_ns() - begun) * 1e9


def times_real_time(seed: int, total: int) -> float:
    """Virtual over real seconds: 8 instances of a 7B model on A100s, 20 requests/s with chat-like lengths."""
    cost = llama_7b_on_a100()
    scenario = Scenario(Placement.colocated(8), cost, cost.kv_slots())
    lengths = {"prompt": "lognormal:700:0.8", "output": "lognormal:210:0.8"}
    rows = Profile("poisson", rate_hz=20.0, count=total, seed=seed, **lengths).rows()
    recorder = Recorder()
    begun = perf_counter_ns()
    scenario.run(rows, [recorder.see])
    spent = perf_counter_ns() - begun
    return max(record.end_ns for record in recorder.records) / spent


def main() -> None:
    options = claim.arguments(__doc__)
    warm, calls, repeats = (15_000, 10_000, 3) if options.quick else (20_000, 60_000, 5)
    runs = [timed_calls(options.seed + i, warm, calls) for i in range(repeats)]
    means_us = [fmean(run.ns) / 1e3 for run in runs]
    p99_us = median(float(np.percentile(run.ns, 99)) / 1e3 for run in runs)
    limits = sorted(CELL_SHARE / mean * 1e6 for mean in means_us)
    tokens = sorted(CELL_SHARE * run.tokens / sum(run.ns) * 1e9 for run in runs)
    bare = median(bare_events_per_s(100_000 if options.quick else 500_000) for _ in range(repeats))
    real = median(times_real_time(options.seed + i, 400 if options.quick else 2_000) for i in range(repeats))
    running, waiting = min(run.running for run in runs), min(run.waiting for run in runs)
    parts = [
        claim.at_least("requests running while timed, at least", running, 1000),
        claim.at_least("requests waiting while timed, at least", waiting, 1000),
        claim.at_most("handle, mean, us", median(means_us), 100),
        claim.at_most("handle, p99, us", p99_us, 1000),
        claim.reported("cell limit, events/s (half a core)", median(limits), (limits[0], limits[-1])),
        claim.reported("cell limit, drawn tokens/s", median(tokens), (tokens[0], tokens[-1])),
        claim.at_least("simulator, bare loop, events/s", bare, 300_000),
        claim.at_least("simulator, 8 x 7B at 20 requests/s, times real time", real, 20),
    ]
    whole = f"the scheduler's price, {calls} calls x {repeats} seeds from {options.seed}"
    claim.finish("scheduler_overhead", claim.together(whole, parts), options)


if __name__ == "__main__":
    main()
