"""The batching programme of elastic groups: exact where it is exact, and how long decisions take.

    python bench/esp_batching.py [--quick]

Lengths are log-uniform from 64 to 200,000 tokens; times of groups are LLaMA3-8B's on A100 (cost/by_group.py).
"""

import gc
import math
import random
import statistics
import time

import claim

from plait.cost.by_group import llama_8b
from plait.cost.fitted import Fitted
from plait.search.batching import Job, Width, best_plan, coarse_cuts, cost_of, twin
from plait.serving.elasticity import ElasticConfig
from plait.serving.manager import GlobalManager, ManagerConfig
from plait.spec.cluster import Instance, Placement, Role
from plait.spec.command import Step
from plait.spec.event import Arrived, StepDone, WorkerUp
from plait.spec.request import Request

SHORTEST, LONGEST = 64, 200_000
SLOTS = 400_000
DECODE = Fitted(0, 0, 0, 0, 9e6, 82.0, 2e4)
LARGE = (128, 1000)
"""Instances and waiting requests of the large case."""


def sib() -> tuple[Width, ...]:
    """Times of groups, in ns."""
    return llama_8b(DECODE).widths


def jobs(count: int, rng: random.Random) -> list[Job]:
    """Waiting requests, longest first."""
    spread = math.log(SHORTEST), math.log(LONGEST)
    lengths = sorted((int(math.exp(rng.uniform(*spread))) for _ in range(count)), reverse=True)
    return [Job(n, n, n * n, 1 / n) for n in lengths]


def rooms(count: int, rng: random.Random, largest: float) -> list[int]:
    """Free slots, most first."""
    return sorted((int(largest * rng.uniform(0.3, 1)) for _ in range(count)), reverse=True)


def brute(work: list[Job], room: list[int], widths: list[Width]) -> float:
    """The least cost, by trying every plan."""
    if not work:
        return 0.0
    best = math.inf
    for first in range(len(work)):
        need = sum(job.need for job in work[first:])
        for right in range(1, len(room) + 1):
            for width in widths:
                left = right - width.instances
                if left >= 0 and need <= sum(room[left:right]):
                    rest = brute(work[:first], room[:left], widths)
                    best = min(best, rest + cost_of(work[first:], width))
    return best


def wrong_cases(count: int, rng: random.Random) -> int:
    """Cases in which the programme, or its twin, is not what trying all finds."""
    wrong = 0
    for _ in range(count):
        instances = rng.randint(1, 5)
        work, room = jobs(rng.randint(1, 8 if rng.random() < 0.2 else 6), rng), rooms(instances, rng, 3e5)
        widths = [width for width in sib() if width.instances <= instances]
        found = best_plan(work, room, widths).cost
        slow = twin(work, room, widths, range(len(work) + 1)).cost
        expected = brute(work, room, widths)
        wrong += not all(math.isclose(cost, expected, rel_tol=1e-9) for cost in (found, slow))
    return wrong


def p99_ms(call: list[float]) -> float:
    return sorted(call)[int(0.99 * (len(call) - 1))] * 1e3


def exact_ms(repeats: int, rng: random.Random) -> float:
    """64 requests on 16 instances, p99."""
    taken, widths = [], sib()
    for _ in range(repeats):
        work, room = jobs(64, rng), rooms(16, rng, 1e6)
        begin = time.perf_counter()
        best_plan(work, room, widths)
        taken.append(time.perf_counter() - begin)
    return p99_ms(taken)


def worst_gap(cases: int, rng: random.Random) -> float:
    """How much more than the exact programme the rough one costs, at worst."""
    gaps, widths = [], sib()
    for _ in range(cases):
        work, room = jobs(LARGE[1], rng), rooms(LARGE[0], rng, SLOTS)
        rough = best_plan(work, room, widths, coarse_cuts(work, ElasticConfig().cuts)).cost
        gaps.append(rough / best_plan(work, room, widths).cost - 1)
    return max(gaps)


def crowded(rng: random.Random) -> tuple[GlobalManager, StepDone]:
    """A manager with 128 free instances and 1,000 requests that wait, and the event at which it decides."""
    manager = GlobalManager(
        ManagerConfig(
            elastic=ElasticConfig(sib(), chunk_ns=1e12),
            placement=Placement(tuple(Instance(i, Role.ELASTIC) for i in range(LARGE[0]))),
        )
    )
    for instance in range(LARGE[0]):
        manager.handle(WorkerUp(instance, 1, SLOTS), instance)
    (busy,) = [c for c in manager.handle(Arrived(Request(-1, LONGEST, 1)), LARGE[0]) if isinstance(c, Step)]
    computing = manager.ensemble.computing
    for instance in manager.seats:  # nothing is free while the queue fills
        computing[instance] = computing.get(instance, 0) + 1
    for number, job in enumerate(jobs(LARGE[1], rng)):
        manager.handle(Arrived(Request(number, job.need, 64)), LARGE[0] + number)
    for instance in manager.seats:
        computing[instance] -= 1
        if not computing[instance]:
            del computing[instance]
    gc.collect()  # what the manager before left is not this one's to clear away
    return manager, StepDone(busy.id, (1,))


def decision_ms(repeats: int, rng: random.Random) -> tuple[float, tuple[float, float, float]]:
    """Until it is decided which requests are computed where, and the first of these steps is made; and until
    all of them are. p99 of the first, median, least and most of the second."""
    decided, made = [], []
    for _ in range(repeats):
        manager, done = crowded(rng)
        begin = time.perf_counter()
        next(manager.elasticity.plan(manager.flights, 10_000))
        decided.append(time.perf_counter() - begin)
        manager, done = crowded(rng)
        begin = time.perf_counter()
        manager.handle(done, 10_000)
        made.append(time.perf_counter() - begin)
    return p99_ms(decided), (1e3 * statistics.median(made), 1e3 * min(made), 1e3 * max(made))


def main() -> None:
    """Measure all lines."""
    options = claim.arguments(__doc__)
    rng, quick = random.Random(options.seed), options.quick
    cases = 500 if quick else 10_000
    decided, made = decision_ms(10 if quick else 200, rng)
    parts = [
        claim.at_most(f"cases of {cases:,} that differ from trying all", wrong_cases(cases, rng), 0),
        claim.at_most("64 requests x 16 instances, p99 ms", exact_ms(200 if quick else 2000, rng), 1.0),
        claim.at_most(
            f"1,000 requests x 128 instances, rough over exact, worst of {5 if quick else 100}",
            worst_gap(5 if quick else 100, rng),
            0.02,
        ),
        claim.at_most("what is computed where is decided there, with the first step, p99 ms", decided, 5.0),
        claim.reported("the same with all steps made and sent, 1,000 rows, ms", made[0], made[1:]),
    ]
    claim.finish("esp_batching", claim.together("batching of elastic groups", parts), options)


if __name__ == "__main__":
    main()
