"""The pipeline runtime: exact gradients, no deadlock, the predicted step time, and a real Actor and Critic.

Random valid schedules of one to three small models on 2 to 8 gloo processes must give the gradients of one
process that trains the models one after another, to the bit; some split backwards, some compute forwards
again, some match messages by their order as NCCL does. Random schedules go through the deadlock check. Step
times are predicted for stages that sleep as long as they say, so that eight ranks need no eight cores. An
Actor and a Critic, real transformers models with one thread a rank and the environment that trainers are
started with, train on two ranks one after another and fused; what fusion gains is held against what the
schedule promises for their measured stage times.
"""

import os
import random
import statistics
from collections.abc import Sequence
from dataclasses import replace

from claim import Claim, arguments, at_least, at_most, finish, together
from pipelines.cases import Case, largest_gap, meet, random_schedule, slept, span_s
from pipelines.pair import Pair, measured
from pipelines.ranks import Ranks

from plait.runtime.launch import environment
from plait.search.pipelines.builders import one_after_another
from plait.search.pipelines.find import ScheduleSearch, greedy, searched
from plait.search.pipelines.fuse import Share, even, fused
from plait.search.pipelines.rendezvous import deadlock, programs
from plait.search.pipelines.timing import measure
from plait.spec.schedule import PipelineProblem, PipelineSchedule

RANKS, UNIT_S, LATENCY_S = 8, 0.004, 0.0006
SLEPT = ((2, 4, 2, 2), (4, 4, 2, 1), (4, 8, 3, 2), (8, 8, 5, 2), (8, 8, 2, 2), (8, 16, 2, 1))
"""Ranks, micro-batches, forwards of Actor and Critic in units."""


def gaps(ranks: Ranks, count: int, seed: int) -> Claim:
    """Largest difference of any gradient, over random schedules."""
    largest = 0.0
    for number in range(count):
        width = 2 + number % (RANKS - 1)
        case = Case(width, 1000 * seed + number, recompute=number % 4 == 3, tagged=number % 5 != 4)
        largest = max(largest, *ranks.run(largest_gap, case, among=width))
    return at_most(f"largest gradient difference from serial, {count} random schedules", largest, 0.0)


def hangs(count: int, seed: int) -> Claim:
    """Random schedules that the check finds to hang."""
    found = 0
    for number in range(count):
        case = Case(2 + number % (RANKS - 1), 10**6 * (seed + 1) + number)
        found += deadlock(programs(case.problem, case.schedule)) is not None
    return at_most(f"deadlocks in {count:,} random schedules", found, 0)


def schedules(problem: PipelineProblem) -> list[PipelineSchedule]:
    """One after another, fused greedily, fused by search, and by chance."""
    best = searched(problem, ScheduleSearch(moves=20_000)).schedule
    return [one_after_another(problem), greedy(problem), best, random_schedule(problem, random.Random(0))]


def predictions(ranks: Ranks, cases: Sequence[tuple[int, int, int, int]]) -> Claim:
    """Median error of predicted step times."""
    ranks.run(meet, sorted({width for width, *_ in cases}))
    errors = []
    for width, count, actor_s, critic_s in cases:
        parts = [Share(even(width, count, actor_s)), Share(even(width, count, critic_s), reverse=True)]
        problem = fused(parts)
        for schedule in schedules(problem):
            predicted_s = (
                measure(replace(problem, latency_s=LATENCY_S / UNIT_S), schedule).makespan_s * UNIT_S
            )
            ran = ranks.run(slept, problem, schedule, UNIT_S, among=width)
            errors.append(abs(span_s(ran) / predicted_s - 1))
    return at_most(f"median error of {len(errors)} predicted step times", statistics.median(errors), 0.05)


def gain(ranks: Ranks, pair: Pair, repeats: int) -> tuple[Claim, ...]:
    """Share of the predicted gain that fusion of real models brings on two cores."""
    found = measured(ranks, pair, repeats)
    title = f"Actor and Critic, {pair.micro_batches} micro-batches"
    return (
        at_least(f"{title}: gain as a share of the predicted {found.predicted:.3f}x", found.share, 0.85),
        at_most(f"{title}: largest difference of fused and serial gradients", found.gap, 0.0),
    )


def main() -> None:
    """See the module."""
    options = arguments(__doc__)
    os.environ |= environment(1)  # with another allocator's habits pages would be measured
    with Ranks(RANKS) as ranks:
        parts = [
            gaps(ranks, 21 if options.quick else 210, options.seed),
            hangs(300 if options.quick else 10_000, options.seed),
            predictions(ranks, SLEPT[:2] if options.quick else SLEPT),
        ]
    with Ranks(2) as ranks:
        for count in (4,) if options.quick else (2, 4, 8):
            parts += gain(ranks, Pair(count), 3 if options.quick else 7)
    finish("pipeline_runtime", together("pipeline runtime: exact, never stuck, as predicted", parts), options)


if __name__ == "__main__":
    main()
