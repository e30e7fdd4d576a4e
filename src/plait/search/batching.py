"""Which requests are computed together, and on how many instances: an exact dynamic programme.

Requests stand in an order (longest first), instances in another (most room first). A plan cuts the requests
into batches, each with an interval of instances to itself, in order; instances may stay idle. It is the one
with the least sum of batch time times urgency over all plans of this kind (LoongServe, section 5.3; its
released program leaves out all but one batch).

    best[i][k] = min( best[i][k - 1]                                     an instance stays idle
                      min over j, width: best[j][k - width] + cost(j..i, width)   if j..i fits them )
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from itertools import accumulate
from math import inf
from types import ModuleType
from typing import NamedTuple

NATIVE: ModuleType | None = None
with suppress(ImportError):  # the compiler is optional
    NATIVE = import_module("plait._native")


class Job(NamedTuple):
    """A request that is to be computed; what its batch's time depends on. A tuple: there are hundreds."""

    need: int
    """KV slots."""
    linear: float
    """Its share of what the time grows with in proportion: tokens to compute."""
    square: float
    """Its share of what grows with attention: tokens to compute times tokens attended to."""
    urgency: float
    """What a second costs; 1 / tokens makes the sum the normalised input latency."""


@dataclass(frozen=True, slots=True)
class Width:
    """Time of a batch on so many instances: alpha + beta * sum(linear) + gamma * sum(square)."""

    instances: int
    alpha: float
    beta: float
    gamma: float


@dataclass(frozen=True, slots=True)
class Batch:
    """Jobs [first, past) on instances [left, right) of the orders given."""

    first: int
    past: int
    left: int
    right: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What to compute where, and what it costs; no batches and infinite cost: nothing fits."""

    cost: float
    batches: tuple[Batch, ...]


def best_plan(
    jobs: Sequence[Job], room: Sequence[int], widths: Sequence[Width], cuts: Sequence[int] | None = None
) -> Plan:
    """The best plan.

    Args:
        room: free KV slots of each instance.
        widths: the numbers of instances that a batch may have.
        cuts: places between jobs at which batches may begin and end, from 0 to len(jobs), ascending; None:
            all. Fewer make an approximation in less time, which grows with n log n.
    """
    places = list(range(len(jobs) + 1) if cuts is None else cuts)
    usable = [width for width in widths if width.instances <= len(room)]
    if not jobs:
        return Plan(0.0, ())
    if NATIVE is None:
        return twin(jobs, room, usable, places)
    cost, found = NATIVE.batches(
        [job.need for job in jobs],
        [job.linear for job in jobs],
        [job.square for job in jobs],
        [job.urgency for job in jobs],
        list(room),
        places,
        [width.instances for width in usable],
        [width.alpha for width in usable],
        [width.beta for width in usable],
        [width.gamma for width in usable],
    )
    firsts = [0, *(past for past, _, _ in found)]
    batches = (
        Batch(first, past, right - count, right)
        for first, (past, right, count) in zip(firsts, found, strict=False)
    )
    return Plan(cost, tuple(batches))


def twin(jobs: Sequence[Job], room: Sequence[int], widths: Sequence[Width], cuts: Sequence[int]) -> Plan:
    """`best_plan` in plain Python: its oracle, and what runs where nothing was compiled."""
    need = list(accumulate((job.need for job in jobs), initial=0))
    rooms = list(accumulate(room, initial=0))
    best = [[0.0] * (len(room) + 1)]
    last: list[list[Batch | None]] = [[None] * (len(room) + 1)]
    for i, past in enumerate(cuts[1:], 1):
        values = [inf] * (len(room) + 1)
        batches: list[Batch | None] = [None] * (len(room) + 1)
        best.append(values)
        last.append(batches)
        for j in range(i - 1, -1, -1):
            tokens = need[past] - need[cuts[j]]
            if tokens > rooms[-1]:
                break
            for width in widths:
                cost = cost_of(jobs[cuts[j] : past], width)
                for k in range(width.instances, len(room) + 1):
                    left = k - width.instances
                    value = best[j][left] + cost
                    if tokens <= rooms[k] - rooms[left] and value < values[k]:
                        values[k], batches[k] = value, Batch(cuts[j], past, left, k)
        for k in range(1, len(room) + 1):
            if values[k - 1] < values[k]:
                values[k], batches[k] = values[k - 1], batches[k - 1]
    return Plan(best[-1][-1], _follow(last, {cut: i for i, cut in enumerate(cuts)}))


def cost_of(jobs: Sequence[Job], width: Width) -> float:
    """What a batch adds to the cost of a plan."""
    linear, square = sum(job.linear for job in jobs), sum(job.square for job in jobs)
    return sum(job.urgency for job in jobs) * (width.alpha + width.beta * linear + width.gamma * square)


def _follow(last: list[list[Batch | None]], row_of: dict[int, int]) -> tuple[Batch, ...]:
    found: list[Batch] = []
    batch = last[-1][-1]
    while batch is not None:
        found.append(batch)
        batch = last[row_of[batch.first]][batch.left]
    return tuple(reversed(found))


def coarse_cuts(jobs: Sequence[Job], most: int) -> list[int]:
    """At most `most` places to cut: every one if there are no more, else closer where jobs are longer.

    Long jobs are computed a few at a time on many instances, where one more or less counts; short ones by the
    dozen. About the cube root of the length was the best of five powers tried on 1,000 jobs.
    """
    if len(jobs) < most:
        return list(range(len(jobs) + 1))
    weights = [job.linear ** (1 / 3) for job in jobs]
    step = sum(weights) / (most - 1)
    cuts, since = [0], 0.0
    for past, weight in enumerate(weights, 1):
        since += weight
        if since >= step or past == len(jobs):
            cuts.append(past)
            since = 0.0
    return cuts
