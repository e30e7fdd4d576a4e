"""Known schedules: GPipe, 1F1B, interleaved, zero-bubble, and several models one after another.

Each builder takes a problem and treats every pipeline by itself; what runs on one rank for different
pipelines follows in the order of the pipelines.
"""

from collections.abc import Callable, Sequence
from itertools import groupby

from plait.search.pipelines.tasks import Tasks, tasks_of
from plait.search.pipelines.timing import measure
from plait.spec.errors import UserError
from plait.spec.schedule import Kind, PipelinedModel, PipelineProblem, PipelineSchedule

Word = tuple[Kind, int]
"""A kind of action at a stage."""


def gpipe(problem: PipelineProblem) -> PipelineSchedule:
    """All forwards, then all backwards (Huang et al. 2019)."""
    return _by_stage(problem, _gpipe_row)


def one_f_one_b(problem: PipelineProblem) -> PipelineSchedule:
    """As few forwards as keep the pipeline full, then a backward and a forward in turn (Narayanan et al.
    2021); where backwards are split, W follows its B."""
    return _by_stage(problem, lambda pipeline, stage: _one_f_one_b_row(pipeline, stage, 0))


def zero_bubble(problem: PipelineProblem) -> PipelineSchedule:
    """1F1B whose W come later the later the stage: as much memory, less waiting (ZB-H1, Qi et al. 2024).

    Raises:
        UserError: a pipeline's backwards are not split.
    """
    if any(pipeline.weight_s is None for pipeline in problem.models):
        raise UserError("a zero-bubble schedule needs backwards that are split: give weight_s")
    return _by_stage(problem, lambda pipeline, stage: _one_f_one_b_row(pipeline, stage, stage))


def interleaved(problem: PipelineProblem) -> PipelineSchedule:
    """Ranks hold several stages each and pass micro-batches round in groups of as many as there are ranks
    (Narayanan et al. 2021).

    Raises:
        UserError: a pipeline's stages do not go round its ranks, its micro-batches are no multiple of the
        ranks, or backwards are split.
    """
    tasks = tasks_of(problem)
    rows: list[list[int]] = [[] for _ in range(problem.ranks)]
    for model, pipeline in enumerate(problem.models):
        width = len(set(pipeline.ranks))
        rounds, rest = divmod(pipeline.stages, width)
        if rest or pipeline.ranks != pipeline.ranks[:width] * rounds:
            raise UserError("interleaved: stages must go round the ranks, the same way every time")
        if pipeline.micro_batches % width or pipeline.weight_s is not None:
            raise UserError(
                f"interleaved: give a multiple of {width} micro-batches, and backwards that are whole"
            )
        for turn, rank in enumerate(pipeline.ranks[:width]):
            row = _interleaved_row(width, rounds, pipeline.micro_batches, turn)
            rows[rank].extend(tasks.index[model, stage, kind] for kind, stage in row)
    return tasks.schedule(rows)


def one_after_another(problem: PipelineProblem) -> PipelineSchedule:
    """Every model by itself as 1F1B: a rank goes on to the next model when it is done with one."""
    return one_f_one_b(problem)


def alone_s(problem: PipelineProblem) -> dict[str, float]:
    """Seconds of training each model by itself as 1F1B, by name and in the order of the problem.

    Copies of one model, which are pipelines on disjoint ranks with the same name, train side by side.
    """
    found = {}
    for name, group in groupby(problem.models, key=lambda each: each.name):
        alone = PipelineProblem(problem.ranks, tuple(group), problem.latency_s, problem.bandwidth)
        found[name] = measure(alone, one_f_one_b(alone)).makespan_s
    return found


def serial_s(problem: PipelineProblem) -> float:
    """Seconds of training the models one after another, each from when the one before has ended."""
    return sum(alone_s(problem).values())


def _by_stage(
    problem: PipelineProblem, row_of: Callable[[PipelinedModel, int], Sequence[Kind]]
) -> PipelineSchedule:
    tasks: Tasks = tasks_of(problem)
    rows: list[list[int]] = [[] for _ in range(problem.ranks)]
    for model, pipeline in enumerate(problem.models):
        if pipeline.goes_round:
            raise UserError("a rank holds several stages of one pipeline: build an interleaved schedule")
        for stage, rank in enumerate(pipeline.ranks):
            rows[rank].extend(tasks.index[model, stage, kind] for kind in row_of(pipeline, stage))
    return tasks.schedule(rows)


def _gpipe_row(pipeline: PipelinedModel, stage: int) -> Sequence[Kind]:
    backward = [kind for kind in pipeline.kinds if kind is not Kind.F]
    return [Kind.F] * pipeline.micro_batches + backward * pipeline.micro_batches


def _one_f_one_b_row(pipeline: PipelinedModel, stage: int, delay: int) -> Sequence[Kind]:
    """A stage's row; its W come so many micro-batches after their B."""
    count = pipeline.micro_batches
    if pipeline.kinds == (Kind.F,):
        return [Kind.F] * count
    ahead = min(pipeline.stages - stage - 1, count)
    row = [Kind.F] * ahead
    split = pipeline.weight_s is not None
    for k in range(count):
        row += [Kind.F] * (k + ahead < count) + [Kind.B] + [Kind.W] * (split and k >= delay)
    return row + [Kind.W] * (min(delay, count) if split else 0)


def _interleaved_row(width: int, rounds: int, micro_batches: int, turn: int) -> Sequence[Word]:
    total = micro_batches * rounds
    ahead = min(2 * (width - turn - 1) + (rounds - 1) * width, total)
    forward = [(Kind.F, (i // width) % rounds * width + turn) for i in range(total)]
    backward = [(Kind.B, (rounds - 1 - (i // width) % rounds) * width + turn) for i in range(total)]
    row = forward[:ahead]
    for i in range(total):
        row += [*forward[ahead + i : ahead + i + 1], backward[i]]
    return row
