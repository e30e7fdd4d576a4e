"""A pipeline problem as flat arrays.

All micro-batches of one kind at one stage form a *series*: they run on one rank, in order. A row of a
schedule is then a sequence of series, and which micro-batch is meant follows from how often a series was
named before; orders that mix up a model's micro-batches cannot be written. Task `first[c] + k` is micro-batch
k of series c.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from math import floor, inf

from plait.spec.schedule import Action, Kind, PipelineProblem, PipelineSchedule

SeriesRows = list[list[int]]
"""For each rank the series of its actions, in order."""


@dataclass(frozen=True, slots=True)
class Series:
    """All micro-batches of one kind at one stage."""

    model: int
    stage: int
    kind: Kind
    rank: int
    count: int
    time_s: float
    after: int
    """Series whose same micro-batch must end first, or -1."""
    lag_s: float
    """From that end to when its result is here."""
    takes: float
    """Bytes from each one's start on."""
    gives: float
    """Bytes from each one's end on."""
    closes: int
    """For a series that takes bytes, the one that gives them back; else -1."""


@dataclass(frozen=True)
class Tasks:
    """The series of a problem and what follows from them."""

    problem: PipelineProblem
    series: tuple[Series, ...]
    caps: tuple[float, ...]
    """What each rank may hold, in the unit of what series take."""

    @cached_property
    def first(self) -> list[int]:
        """First task of each series."""
        return list(accumulate((each.count for each in self.series), initial=0))[:-1]

    @cached_property
    def count(self) -> int:
        """How many tasks there are."""
        return sum(each.count for each in self.series)

    @cached_property
    def of_rank(self) -> list[list[int]]:
        """Series of each rank, ascending."""
        found: list[list[int]] = [[] for _ in range(self.problem.ranks)]
        for index, each in enumerate(self.series):
            found[each.rank].append(index)
        return found

    @cached_property
    def followers(self) -> list[list[int]]:
        """Series that wait for each series."""
        found: list[list[int]] = [[] for _ in self.series]
        for index, each in enumerate(self.series):
            if each.after >= 0:
                found[each.after].append(index)
        return found

    @cached_property
    def index(self) -> dict[tuple[int, int, Kind], int]:
        """Series by model, stage and kind."""
        return {(each.model, each.stage, each.kind): i for i, each in enumerate(self.series)}

    def schedule(self, rows: Sequence[Sequence[int]]) -> PipelineSchedule:
        """Rows of series as rows of actions."""
        seen = [0] * len(self.series)
        named = []
        for row in rows:
            actions = []
            for index in row:
                each = self.series[index]
                actions.append(Action(each.model, each.stage, each.kind, seen[index]))
                seen[index] += 1
            named.append(tuple(actions))
        return PipelineSchedule(tuple(named))

    def rows(self, schedule: PipelineSchedule) -> SeriesRows:
        """Rows of actions as rows of series; the schedule was checked."""
        return [[self.index[a.model, a.stage, a.kind] for a in row] for row in schedule.rows]


def tasks_of(problem: PipelineProblem) -> Tasks:
    """The flat form of a problem; the series of a pipeline are its F, then its B, then its W, by stage."""
    series: list[Series] = []
    for model, pipeline in enumerate(problem.models):
        base, stages = len(series), pipeline.stages
        last = len(pipeline.kinds) - 1
        for turn, kind in enumerate(pipeline.kinds):
            for stage in range(stages):
                before = _before(kind, stage, stages)
                after = -1 if before is None else base + before[0] * stages + before[1]
                source = stage if before is None else before[1]
                series.append(
                    Series(
                        model,
                        stage,
                        kind,
                        pipeline.ranks[stage],
                        pipeline.micro_batches,
                        pipeline.seconds(kind, stage),
                        after,
                        problem.delay_s(pipeline, pipeline.ranks[source], pipeline.ranks[stage]),
                        pipeline.kept_bytes[stage] if kind is Kind.F else 0.0,
                        pipeline.kept_bytes[stage] if turn == last else 0.0,
                        base + last * stages + stage if kind is Kind.F else -1,
                    )
                )
    return Tasks(problem, tuple(series), problem.memory_bytes or (inf,) * problem.ranks)


def counted(tasks: Tasks, unit: float) -> Tasks:
    """The same with sizes as whole numbers of a unit, whose sums are exact in any order."""
    whole = (
        replace(each, takes=float(round(each.takes / unit)), gives=float(round(each.gives / unit)))
        for each in tasks.series
    )
    caps = (cap if cap == inf else float(floor(cap / unit * (1 + 1e-8))) for cap in tasks.caps)
    return Tasks(tasks.problem, tuple(whole), tuple(caps))


def _before(kind: Kind, stage: int, stages: int) -> tuple[int, int] | None:
    """Turn and stage of what the same micro-batch must have done first."""
    if kind is Kind.F:
        return (0, stage - 1) if stage else None
    if kind is Kind.W:
        return (1, stage)
    return (0, stage) if stage == stages - 1 else (1, stage + 1)
