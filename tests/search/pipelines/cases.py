"""Problems that several tests of schedules share, and the independent verifier of bench."""

import importlib.util
from pathlib import Path
from types import ModuleType

from hypothesis import strategies as st

from plait.search.pipelines.arrangement import Dice
from plait.search.pipelines.fuse import Share, even, fused
from plait.search.pipelines.tasks import tasks_of
from plait.search.pipelines.timing import ScheduleTiming
from plait.spec.schedule import PipelinedModel, PipelineProblem, PipelineSchedule

ROOT = Path(__file__).parents[3]


def _bench(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "bench" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


VERIFIER = _bench("schedule_verifier")


def opposite(ranks: int, micro_batches: int, actor_s: float, critic_s: float) -> PipelineProblem:
    """An Actor and a Critic of equal depth in opposite directions."""
    actor, critic = (even(ranks, micro_batches, each) for each in (actor_s, critic_s))
    return fused([Share(actor), Share(critic, reverse=True)])


def verified(
    problem: PipelineProblem, schedule: PipelineSchedule, timing: ScheduleTiming
) -> tuple[float, float]:
    """What the independent verifier finds; it knows no bandwidth."""
    return VERIFIER.verify(models_of(problem), timed_rows(schedule, timing), problem.latency_s)


def models_of(problem: PipelineProblem) -> list[object]:
    """A problem in the verifier's words."""
    columns = (
        (m.micro_batches, m.ranks, m.forward_s, m.backward_s, m.weight_s, m.kept_bytes)
        for m in problem.models
    )
    return [VERIFIER.Model(*column) for column in columns]


def timed_rows(
    schedule: PipelineSchedule, timing: ScheduleTiming
) -> list[list[tuple[int, int, str, int, float]]]:
    """A schedule in the verifier's words."""
    return [
        [(a.model, a.stage, a.kind.value, a.micro_batch, at) for a, at in zip(row, starts, strict=True)]
        for row, starts in zip(schedule.rows, timing.starts_s, strict=True)
    ]


def random_schedule(problem: PipelineProblem, seed: int) -> PipelineSchedule:
    """A valid schedule: at every turn any action whose predecessor is done, by chance."""
    tasks, dice = tasks_of(problem), Dice(seed)
    done = [0] * len(tasks.series)
    rows: list[list[int]] = [[] for _ in range(problem.ranks)]
    for _ in range(tasks.count):
        able = [
            index
            for index, each in enumerate(tasks.series)
            if done[index] < (each.count if each.after < 0 else done[each.after])
        ]
        chosen = able[dice.below(len(able))]
        done[chosen] += 1
        rows[tasks.series[chosen].rank].append(chosen)
    return tasks.schedule(rows)


times = st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.7])


@st.composite
def problems(draw: st.DrawFn) -> PipelineProblem:
    """A few ranks and one to three pipelines in any places, some split, some with delays."""
    ranks = draw(st.integers(1, 4))
    pipelines = []
    for _ in range(draw(st.integers(1, 3))):
        places = draw(st.lists(st.integers(0, ranks - 1), min_size=1, max_size=5))
        per_stage = st.lists(times, min_size=len(places), max_size=len(places)).map(tuple)
        split = draw(st.booleans())
        pipelines.append(
            PipelinedModel(
                draw(st.integers(1, 4)),
                tuple(places),
                draw(per_stage),
                draw(per_stage),
                draw(per_stage) if split else None,
                draw(per_stage),
            )
        )
    return PipelineProblem(ranks, tuple(pipelines), draw(st.sampled_from([0.0, 0.3])))
