"""What no schedule of a problem can be shorter than.

Each rank is looked at alone: its tasks have heads (nothing can start earlier), tails (so long lasts what
follows from it) and work. The shortest schedule of one rank whose tasks may be interrupted is found in one
pass: whenever something is released or ends, run the task with the longest tail (Jackson 1955; Carlier 1982).
Where a rank has no idle time this is the earliest start plus work plus the least tail; it also covers a model
by itself.
"""

from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from plait.search.pipelines.tasks import Tasks, tasks_of
from plait.spec.schedule import PipelineProblem


@dataclass(frozen=True, slots=True)
class Bounds:
    """No makespan is below `makespan_s`."""

    makespan_s: float
    of_rank_s: tuple[float, ...]
    """What each rank alone enforces."""
    start_and_work_s: float
    """The most over ranks of earliest start plus work: weaker, and met where all backward tails can be
    filled."""


def bounds(problem: PipelineProblem) -> Bounds:
    """Lower bounds of a problem's makespan; memory caps are not considered."""
    tasks = tasks_of(problem)
    heads, tails = _heads(tasks), _tails(tasks)
    of_rank, started = [], []
    for indices in tasks.of_rank:
        here = [
            (heads[c][k], tails[c][k], tasks.series[c].time_s)
            for c in indices
            for k in range(tasks.series[c].count)
        ]
        of_rank.append(interrupted(here))
        started.append(min((head for head, _, _ in here), default=0.0) + sum(time for _, _, time in here))
    return Bounds(max(of_rank), tuple(of_rank), max(started))


def interrupted(jobs: list[tuple[float, float, float]]) -> float:
    """The shortest makespan on one machine of interruptible jobs, each (head, tail, time)."""
    coming = [(head, -tail, time) for head, tail, time in jobs]
    heapify(coming)
    ready: list[tuple[float, float]] = []
    now = latest = 0.0
    while coming or ready:
        if not ready:
            now = max(now, coming[0][0])
        while coming and coming[0][0] <= now:
            _, tail, time = heappop(coming)
            heappush(ready, (tail, time))
        tail, time = heappop(ready)
        run = min(time, coming[0][0] - now) if coming else time
        now += run
        if run < time:
            heappush(ready, (tail, time - run))
        else:
            latest = max(latest, now - tail)
    return latest


def _heads(tasks: Tasks) -> list[list[float]]:
    """Earliest start of every task: after its own series and the chain before it."""
    found: list[list[float]] = [[] for _ in tasks.series]
    for index in _forward(tasks):
        each = tasks.series[index]
        before = found[each.after] if each.after >= 0 else [0.0] * each.count
        gap = tasks.series[each.after].time_s + each.lag_s if each.after >= 0 else 0.0
        last = -each.time_s
        for head in before:
            last = max(head + gap, last + each.time_s)
            found[index].append(last)
    return found


def _tails(tasks: Tasks) -> list[list[float]]:
    """What must pass after the end of every task."""
    found: list[list[float]] = [[] for _ in tasks.series]
    for index in reversed(_forward(tasks)):
        each = tasks.series[index]
        last, back = -each.time_s, []
        for k in reversed(range(each.count)):
            last += each.time_s
            for follower in tasks.followers[index]:
                later = tasks.series[follower]
                last = max(last, later.lag_s + later.time_s + found[follower][k])
            back.append(last)
        found[index] = back[::-1]
    return found


def _forward(tasks: Tasks) -> list[int]:
    """Series in an order in which each comes after what it waits for."""
    order = [index for index, each in enumerate(tasks.series) if each.after < 0]
    for index in order:
        order.extend(tasks.followers[index])
    return order
