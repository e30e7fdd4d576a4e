"""Fused schedules: greedy by one list, and searched."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from plait.search.pipelines.anneal import Annealing, Board, Hints, search
from plait.search.pipelines.arrangement import listed
from plait.search.pipelines.bounds import bounds
from plait.search.pipelines.builders import one_f_one_b
from plait.search.pipelines.tasks import SeriesRows, Tasks, counted, tasks_of
from plait.search.pipelines.timing import ScheduleTiming, full_rank, measure
from plait.spec.errors import UserError
from plait.spec.schedule import Kind, PipelinedModel, PipelineProblem, PipelineSchedule

NATIVE: ModuleType | None = None
with suppress(ImportError):  # the compiler is optional
    NATIVE = import_module("plait._native")

UNITS = 2.0**30
"""The largest size of a micro-batch in the units that searches count in: sums of whole numbers are exact."""


@dataclass(frozen=True, slots=True)
class ScheduleSearch:
    """How long and how a schedule is sought. Temperatures are shares of the mean time of an action."""

    seconds: float = 60.0
    """Stop after so long, if not before because nothing better is known to exist."""
    threads: int = 1
    """That search at the same time and tell each other what they find."""
    moves: int = 0
    """Stop after so many; then equal seeds give equal schedules. Needs one thread. 0: no limit."""
    seed: int = 0
    enough_bytes: float = 0.0
    """No rank needs to hold less; at least what the hungriest model takes by itself as 1F1B."""
    slack: float = 0.0
    """A makespan above the bound by this share is short enough: memory is sought at it."""
    hot: float = 0.6
    """Temperature at the start of a run."""
    cold: float = 0.05
    """At its end."""
    price: float = 0.15
    """Of the mean size of a micro-batch at a place of a row above the memory aimed at: a share of that
    time."""
    crowds: float = 0.7
    """Share of moves that lower memory, while some is above the aim."""
    patterns: float = 0.03
    """Share of swaps that are repeated in the periods that follow."""
    length: int = 500
    """Moves of the first run for each task; further runs have twice as many, up to sixteen times."""

    def __post_init__(self) -> None:
        if self.moves and self.threads != 1:
            raise UserError("a search limited in moves repeats itself only with one thread: set threads to 1")
        if min(self.seconds, self.threads, self.length) <= 0 or min(self.moves, self.seed, self.slack) < 0:
            raise UserError(
                "give seconds above 0, a thread or more, and moves, no length, seed or slack below 0"
            )
        if not 0 < self.cold <= self.hot:
            raise UserError("give temperatures above 0, and hot not below cold")


@dataclass(frozen=True, slots=True)
class Searched:
    """A schedule, and how good it is known to be."""

    schedule: PipelineSchedule
    timing: ScheduleTiming
    bound_s: float
    """No schedule has a lower makespan."""
    steps: tuple[tuple[float, float, float], ...]
    """Improvements of the search as they came: seconds, makespan, peak bytes of a rank."""

    @property
    def gap(self) -> float:
        """The share of the makespan by which a shorter schedule could at most be shorter."""
        return 1 - self.bound_s / self.timing.makespan_s

    def __str__(self) -> str:
        return (
            f"makespan {self.timing.makespan_s:g} s, bound {self.bound_s:g} s (gap {self.gap:.2%}), "
            f"bubble {self.timing.bubble:.1%}, peak {max(self.timing.peak_bytes):g} bytes"
        )


def greedy(problem: PipelineProblem) -> PipelineSchedule:
    """Whatever can start first runs first; backwards before forwards, earlier models before later ones.
    Memory is not considered: forwards run as far ahead as they can."""
    tasks = tasks_of(problem)
    preference = [urgency for urgency in _hints(tasks).urgency for _ in range(3)]
    return tasks.schedule(_listed(tasks, preference, [each.count for each in tasks.series]))


def searched(
    problem: PipelineProblem, config: ScheduleSearch | None = None, clock: Callable[[], float] | None = None
) -> Searched:
    """The shortest schedule found, and of the shortest the one whose ranks hold least.

    Args:
        clock: seconds, for the search in Python where nothing is compiled; without it `moves` must limit it.

    Raises:
        UserError: nothing was found that keeps the memory caps, or the search would never end.
    """
    config = config or ScheduleSearch()
    tasks, bound = tasks_of(problem), bounds(problem).makespan_s
    rows, steps = _search(tasks, bound, config, clock)
    found = [tasks.schedule(rows)] if rows else []
    if not any(model.goes_round for model in problem.models):
        found.append(one_f_one_b(problem))
    timed = [(measure(problem, schedule), schedule) for schedule in found]
    kept = [each for each in timed if full_rank(problem, each[0]) is None]
    if not kept:
        raise UserError("no schedule was found within the memory caps: allow more memory or more seconds")
    timing, schedule = min(kept, key=lambda each: (each[0].makespan_s, max(each[0].peak_bytes)))
    return Searched(schedule, timing, bound, tuple(steps))


def alone_bytes(problem: PipelineProblem) -> float:
    """The most that a rank holds when each model trains by itself as 1F1B."""
    return max(_alone_bytes(pipeline) for pipeline in problem.models)


def _alone_bytes(pipeline: PipelinedModel) -> float:
    flights = (min(pipeline.stages - stage, pipeline.micro_batches) for stage in range(pipeline.stages))
    return max(flight * kept for flight, kept in zip(flights, pipeline.kept_bytes, strict=True))


def _hints(tasks: Tasks) -> Hints:
    pipelines = tasks.problem.models
    return Hints(
        tuple(2.0 if each.kind is Kind.B else 0.0 for each in tasks.series),
        tuple(pipelines[each.model].stages - each.stage for each in tasks.series),
    )


def _listed(tasks: Tasks, preference: Sequence[float], ahead: Sequence[int]) -> SeriesRows:
    if NATIVE is None:
        return listed(tasks, preference, ahead)
    rows: SeriesRows = NATIVE.schedule_listed(flat(tasks), list(preference), list(ahead))
    return rows


def _search(
    tasks: Tasks, bound_s: float, config: ScheduleSearch, clock: Callable[[], float] | None
) -> tuple[SeriesRows, list[tuple[float, float, float]]]:
    """Rows found and the improvements that led to them; sizes are whole numbers of a unit."""
    largest = max(each.takes for each in tasks.series)
    unit = largest / UNITS if largest else 1.0
    enough = max(config.enough_bytes, alone_bytes(tasks.problem)) * (1 + 1e-6) / unit
    goal_s = bound_s * (1 + max(config.slack, 1e-9))
    whole, hints = counted(tasks, unit), _hints(tasks)
    how = annealing_of(whole, config)
    if NATIVE is None:
        if clock is None and not config.moves:
            raise UserError("without native code a search needs a clock or a limit of moves: set moves")
        board = Board(goal_s, enough, config.moves, config.seconds, clock)
        search(whole, hints, how, board, config.seed)
        rows, steps = board.rows, board.steps
    else:
        rows, steps = NATIVE.schedule_search(
            flat(whole),
            list(hints.urgency),
            list(hints.ahead),
            [how.hot_s, how.cold_s, how.price_s, how.crowds, how.patterns],
            how.length,
            (goal_s, enough),
            (config.seconds, config.moves),
            (config.seed, config.threads),
        )
    return rows, [(seconds, makespan, size * unit) for seconds, makespan, size in steps]


def annealing_of(tasks: Tasks, config: ScheduleSearch) -> Annealing:
    """A configuration in the seconds and sizes of these tasks."""
    time_s = sum(each.time_s for each in tasks.series) / len(tasks.series)
    takes = [each.takes for each in tasks.series if each.takes > 0]
    size = sum(takes) / len(takes) if takes else 1.0
    return Annealing(
        config.hot * time_s,
        config.cold * time_s,
        config.price * time_s / size,
        config.crowds,
        config.patterns,
        config.length * tasks.count,
    )


def flat(tasks: Tasks) -> tuple[list[float] | list[int], ...]:
    """Tasks as the columns that native code takes."""
    series = tasks.series
    return (
        [each.rank for each in series],
        [each.count for each in series],
        [each.after for each in series],
        [each.closes for each in series],
        [each.time_s for each in series],
        [each.lag_s for each in series],
        [each.takes for each in series],
        [each.gives for each in series],
        list(tasks.caps),
    )
