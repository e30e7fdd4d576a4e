"""Whether a schedule is one, and what it costs: times, bubbles, memory."""

from collections import Counter
from dataclasses import dataclass

from plait.search.pipelines.tasks import SeriesRows, Tasks, tasks_of
from plait.spec.errors import UserError
from plait.spec.schedule import PipelineProblem, PipelineSchedule


@dataclass(frozen=True, slots=True)
class ScheduleTiming:
    """When a schedule's actions run if each starts as soon as it can, and what they occupy."""

    starts_s: tuple[tuple[float, ...], ...]
    """For every rank, by place in its row."""
    ends_s: tuple[tuple[float, ...], ...]
    makespan_s: float
    bubble: float
    """Share of the ranks' time until the makespan in which they do nothing."""
    peak_bytes: tuple[float, ...]
    """The most that each rank holds at a time."""


def measure(problem: PipelineProblem, schedule: PipelineSchedule) -> ScheduleTiming:
    """Times, bubble and memory of a schedule.

    Raises:
        UserError: it is no schedule of the problem (see `check`).
    """
    tasks = tasks_of(problem)
    _check_actions(tasks, schedule)
    rows = tasks.rows(schedule)
    starts = start_times(tasks, rows)
    if starts is None:
        raise UserError(f"actions wait for each other: {circle(tasks, rows)}; swap two of them on one rank")
    times = [[tasks.series[index].time_s for index in row] for row in rows]
    ends = [[s + t for s, t in zip(row, time, strict=True)] for row, time in zip(starts, times, strict=True)]
    makespan = max(row[-1] for row in ends if row)
    busy = sum(map(sum, times))
    return ScheduleTiming(
        tuple(map(tuple, starts)),
        tuple(map(tuple, ends)),
        makespan,
        1 - busy / (makespan * len(rows)),
        tuple(peaks(tasks, rows)),
    )


def check(problem: PipelineProblem, schedule: PipelineSchedule) -> None:
    """Refuse what is no schedule of the problem.

    Raises:
        UserError: an action is missing, there twice, on a wrong rank or before an earlier micro-batch of its
            kind; actions wait for each other in a circle, which is named; a rank holds more than it may.
    """
    found = measure(problem, schedule)
    rank = full_rank(problem, found)
    if rank is not None:
        peak, cap = found.peak_bytes[rank], problem.memory_bytes[rank]
        raise UserError(f"rank {rank} would hold {peak:g} bytes of {cap:g}; allow more or reorder it")


def full_rank(problem: PipelineProblem, timing: ScheduleTiming) -> int | None:
    """The first rank that holds more than it may, if any; a millionth more is taken for rounding."""
    caps = zip(timing.peak_bytes, problem.memory_bytes, strict=False)
    return next((rank for rank, (peak, cap) in enumerate(caps) if peak > cap * (1 + 1e-6)), None)


def _check_actions(tasks: Tasks, schedule: PipelineSchedule) -> None:
    if len(schedule.rows) != tasks.problem.ranks:
        raise UserError(f"the schedule has {len(schedule.rows)} rows for {tasks.problem.ranks} ranks")
    seen: Counter[int] = Counter()
    for rank, row in enumerate(schedule.rows):
        for action in row:
            index = tasks.index.get((action.model, action.stage, action.kind))
            if index is None or not 0 <= action.micro_batch < tasks.series[index].count:
                raise UserError(f"rank {rank}: the problem has no action {action}")
            if tasks.series[index].rank != rank:
                raise UserError(f"rank {rank} has {action}, which belongs on rank {tasks.series[index].rank}")
            if action.micro_batch != seen[index]:
                raise UserError(f"rank {rank}: {action} stands where micro-batch {seen[index]} is next")
            seen[index] += 1
    for index, each in enumerate(tasks.series):
        if seen[index] < each.count:
            missing = f"{each.model}.{each.stage}{each.kind.value}{seen[index]}"
            raise UserError(f"rank {each.rank}: {missing} is missing")


def start_times(tasks: Tasks, rows: SeriesRows) -> list[list[float]] | None:
    """Earliest starts of a row's places, or None where actions wait for each other."""
    series, free = tasks.series, [0.0] * len(rows)
    ends: list[list[float]] = [[] for _ in series]
    starts: list[list[float]] = [[] for _ in rows]
    waiting: dict[tuple[int, int], int] = {}
    able = list(range(len(rows)))
    while able:
        rank = able.pop()
        while len(starts[rank]) < len(rows[rank]):
            index = rows[rank][len(starts[rank])]
            each, k = series[index], len(ends[index])
            ready = 0.0
            if each.after >= 0:
                if len(ends[each.after]) <= k:
                    waiting[each.after, k] = rank
                    break
                ready = ends[each.after][k] + each.lag_s
            start = max(ready, free[rank])
            starts[rank].append(start)
            free[rank] = start + each.time_s
            ends[index].append(free[rank])
            woken = waiting.pop((index, k), None)
            if woken is not None:
                able.append(woken)
    done = all(len(start) == len(row) for start, row in zip(starts, rows, strict=True))
    return starts if done else None


def peaks(tasks: Tasks, rows: SeriesRows) -> list[float]:
    """The most bytes that each rank holds at a time."""
    found = []
    for row in rows:
        held = most = 0.0
        for index in row:
            held += tasks.series[index].takes
            most = max(most, held)
            held -= tasks.series[index].gives
        found.append(most)
    return found


def circle(tasks: Tasks, rows: SeriesRows) -> str:
    """Actions that wait for each other, each for the next one; the rows have no start times."""
    places: dict[tuple[int, int], tuple[int, int]] = {}
    for rank, row in enumerate(rows):
        seen: Counter[int] = Counter()
        for at, index in enumerate(row):
            places[index, seen[index]] = (rank, at)
            seen[index] += 1
    task_at = {place: task for task, place in places.items()}
    done = _reachable(tasks, rows, places)
    rank = next(rank for rank, row in enumerate(rows) if done[rank] < len(row))
    path = [task_at[rank, done[rank]]]
    while True:
        index, k = path[-1]
        rank, at = places[index, k]
        before = tasks.series[index].after
        blocked = before >= 0 and places[before, k][1] >= done[places[before, k][0]]
        step = (before, k) if blocked else task_at[rank, at - 1]
        if step in path:
            ring = [*path[path.index(step) :], step]
            return " waits for ".join(_name(tasks, *task) for task in ring)
        path.append(step)


def _reachable(tasks: Tasks, rows: SeriesRows, places: dict[tuple[int, int], tuple[int, int]]) -> list[int]:
    """How far each rank comes before it waits for ever."""
    done, seen, moved = [0] * len(rows), Counter[int](), True
    while moved:
        moved = False
        for rank, row in enumerate(rows):
            while done[rank] < len(row):
                index = row[done[rank]]
                before, k = tasks.series[index].after, seen[index]
                if before >= 0 and places[before, k][1] >= done[places[before, k][0]]:
                    break
                done[rank], moved = done[rank] + 1, True
                seen[index] += 1
    return done


def _name(tasks: Tasks, index: int, k: int) -> str:
    each = tasks.series[index]
    return f"{each.model}.{each.stage}{each.kind.value}{k} (rank {each.rank})"
