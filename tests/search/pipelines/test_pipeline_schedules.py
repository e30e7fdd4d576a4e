"""Schedules are checked, timed, built and written as their definitions say."""

import json
from dataclasses import replace
from math import isclose

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.search.pipelines.bounds import bounds
from plait.search.pipelines.builders import (
    gpipe,
    interleaved,
    one_after_another,
    one_f_one_b,
    serial_s,
    zero_bubble,
)
from plait.search.pipelines.form import from_csv, picture, save_trace, to_csv, trace
from plait.search.pipelines.fuse import Share, even, fused, split_backward
from plait.search.pipelines.timing import check, measure
from plait.spec.errors import UserError
from plait.spec.schedule import Action, Kind, PipelinedModel, PipelineProblem, PipelineSchedule
from tests.search.pipelines.cases import (
    VERIFIER,
    models_of,
    opposite,
    problems,
    random_schedule,
    timed_rows,
    verified,
)

SEEDS = st.integers(0, 2**32)


def alone(pipeline: PipelinedModel, ranks: int) -> PipelineProblem:
    return PipelineProblem(ranks, (pipeline,))


@given(problems(), SEEDS)
def test_the_verifier_agrees_about_any_schedule(problem, seed):
    schedule = random_schedule(problem, seed)
    timing = measure(problem, schedule)
    makespan, peak = verified(problem, schedule, timing)
    assert makespan == timing.makespan_s
    assert isclose(peak, max(timing.peak_bytes), abs_tol=1e-9)
    assert bounds(problem).makespan_s <= makespan * (1 + 1e-9)
    assert 0 <= timing.bubble < 1


@given(problems(), SEEDS, st.integers(0, 10**6), st.sampled_from(["early", "gone", "twice", "moved"]))
def test_the_verifier_refuses_what_was_tampered_with(problem, seed, place, how):
    schedule = random_schedule(problem, seed)
    rows = timed_rows(schedule, measure(problem, schedule))
    full = [rank for rank, row in enumerate(rows) if row]
    rank = full[place % len(full)]
    at = place % len(rows[rank])
    *action, start = rows[rank][at]
    if how == "early":
        rows[rank][at] = (*action, start - 0.01)
    elif how == "gone":
        del rows[rank][at]
    elif how == "twice":
        rows[rank].append(rows[rank][at])
    elif problem.ranks > 1:
        rows[(rank + 1) % problem.ranks].append(rows[rank].pop(at))
    if (how == "early" and start == 0) or (how == "moved" and problem.ranks == 1):
        return
    with pytest.raises(VERIFIER.Wrong):
        VERIFIER.verify(models_of(problem), rows, problem.latency_s)


@given(problems(), SEEDS)
def test_csv_reads_back(problem, seed):
    schedule = random_schedule(problem, seed)
    text = to_csv(schedule)
    assert from_csv(text) == schedule


@pytest.mark.parametrize(("stages", "micro_batches"), [(1, 3), (2, 1), (4, 4), (4, 9), (8, 3)])
def test_1f1b_and_gpipe_take_as_long_and_hold_what_is_known(stages, micro_batches):
    problem = alone(even(stages, micro_batches, 2.0, 3.0), stages)
    one, all_first = measure(problem, one_f_one_b(problem)), measure(problem, gpipe(problem))
    assert one.makespan_s == all_first.makespan_s == (micro_batches + stages - 1) * 6.0
    assert one.bubble == pytest.approx((stages - 1) / (stages - 1 + micro_batches))
    assert one.peak_bytes == tuple(3.0 * min(stages - stage, micro_batches) for stage in range(stages))
    assert all_first.peak_bytes == (3.0 * micro_batches,) * stages
    assert bounds(problem).makespan_s == one.makespan_s


@pytest.mark.parametrize(("stages", "micro_batches"), [(2, 4), (4, 8), (4, 12)])
def test_zero_bubble_waits_less_and_holds_as_much(stages, micro_batches):
    problem = split_backward(alone(even(stages, micro_batches, 2.0, 1.0), stages))
    timing = measure(problem, zero_bubble(problem))
    assert timing.makespan_s == micro_batches * 6.0 + (stages - 1) * 2.0  # F + B - W for each stage
    assert max(timing.peak_bytes) == stages


@pytest.mark.parametrize(("ranks", "rounds", "micro_batches"), [(2, 2, 4), (4, 2, 8), (4, 3, 4)])
def test_interleaving_divides_the_bubble(ranks, rounds, micro_batches):
    stages = ranks * rounds
    one = replace(even(stages, micro_batches, 1.0), ranks=tuple(range(ranks)) * rounds)
    problem = alone(one, ranks)
    timing = measure(problem, interleaved(problem))
    work = micro_batches * rounds * 3.0
    assert timing.makespan_s - work == (ranks - 1) * 3.0
    verified(problem, interleaved(problem), timing)


def test_builders_refuse_what_they_cannot_build():
    twice = alone(replace(even(4, 3, 1.0), ranks=(0, 1, 0, 1)), 2)
    with pytest.raises(UserError, match="interleaved"):
        one_f_one_b(twice)
    with pytest.raises(UserError, match="multiple of 2"):
        interleaved(twice)
    with pytest.raises(UserError, match="go round"):
        interleaved(alone(replace(even(3, 2, 1.0), ranks=(0, 1, 1)), 2))
    with pytest.raises(UserError, match="weight_s"):
        zero_bubble(twice)


def test_serial_is_the_sum_of_the_models():
    actor, critic = even(8, 32, 5.0, name="actor"), even(4, 16, 4.0, name="critic")
    problem = fused([Share(actor), Share(critic, reverse=True)])
    assert serial_s(problem) == 813
    assert measure(problem, one_after_another(problem)).makespan_s <= 813


def test_a_block_holds_copies_side_by_side_in_their_directions():
    problem = fused([Share(even(4, 8, 1.0)), Share(even(2, 4, 1.0), reverse=True)])
    assert [each.ranks for each in problem.models] == [(0, 1, 2, 3), (1, 0), (3, 2)]
    with pytest.raises(UserError, match="do not divide"):
        fused([Share(even(4, 8, 1.0)), Share(even(3, 8, 1.0))])
    with pytest.raises(UserError, match="must be equal"):
        fused([Share(even(4, 8, 1.0)), Share(even(2, 8, 1.0))])


def test_delays_count_once_between_ranks():
    problem = PipelineProblem(2, (replace(even(2, 1, 1.0), sent_bytes=50.0),), 0.25, 100.0)
    assert measure(problem, one_f_one_b(problem)).makespan_s == 6.0 + 2 * 0.75
    assert bounds(problem).makespan_s == 6.0 + 2 * 0.75


def changed(schedule: PipelineSchedule, rank: int, row: list[Action]) -> PipelineSchedule:
    rows = [*schedule.rows]
    rows[rank] = tuple(row)
    return PipelineSchedule(tuple(rows))


def test_what_is_no_schedule_is_refused_with_the_reason():
    problem = opposite(2, 2, 1.0, 1.0)
    good = one_f_one_b(problem)
    first, *rest = good.rows[0]
    for row, reason in (
        (rest, "1 is next|0 is next"),
        (good.rows[0][:-1], "is missing"),
        ([*good.rows[0], first], "2 is next"),
        ([Action(5, 0, Kind.F, 0), *rest], "no action 5.0F0"),
        ([Action(0, 0, Kind.W, 0), *rest], "no action 0.0W0"),
        ([good.rows[1][0], *rest], "belongs on rank 1"),
    ):
        with pytest.raises(UserError, match=reason):
            check(problem, changed(good, 0, list(row)))
    with pytest.raises(UserError, match="1 rows for 2 ranks"):
        check(problem, PipelineSchedule(good.rows[:1]))
    capped = replace(fused([Share(even(2, 2, 1.0, 10.0))]), memory_bytes=(15.0, 15.0))
    with pytest.raises(UserError, match="rank 0 would hold 20 bytes of 15"):
        check(capped, one_f_one_b(capped))
    check(replace(capped, memory_bytes=(20.0, 10.0)), one_f_one_b(capped))


def test_a_circle_is_named():
    problem = alone(even(2, 1, 1.0), 2)
    f0, b0 = Action(0, 0, Kind.F, 0), Action(0, 0, Kind.B, 0)
    f1, b1 = Action(0, 1, Kind.F, 0), Action(0, 1, Kind.B, 0)
    with pytest.raises(UserError) as caught:
        check(problem, PipelineSchedule(((b0, f0), (f1, b1))))
    for action in ("0.0B0 (rank 0)", "0.1B0 (rank 1)", "0.1F0 (rank 1)", "0.0F0 (rank 0)"):
        assert action in str(caught.value)


@pytest.mark.parametrize(
    "given_",
    [
        {"forward_s": (1.0,)},
        {"forward_s": (1.0, -1.0)},
        {"micro_batches": 0},
        {"kept_bytes": (-1.0, 0.0)},
        {"weight_s": (0.0, 1.0)},
    ],
)
def test_impossible_pipelines_are_refused(given_):
    with pytest.raises(UserError):
        replace(even(2, 2, 1.0), **given_)


def test_impossible_problems_are_refused():
    pipeline = even(2, 2, 1.0)
    for make in (
        lambda: PipelineProblem(1, (pipeline,)),
        lambda: PipelineProblem(2, ()),
        lambda: PipelineProblem(2, (pipeline,), memory_bytes=(1.0,)),
        lambda: PipelineProblem(2, (pipeline,), latency_s=-1.0),
    ):
        with pytest.raises(UserError):
            make()


@pytest.mark.parametrize("cell", ["F", "0F1", "0.F1", "0.1X2", "0.1F", "a.1F2", "0.1F-2"])
def test_cells_that_are_no_actions_are_refused(cell):
    with pytest.raises(UserError, match="line 2"):
        from_csv(f"0.0F0\n0.1F0,{cell}\n")


def test_the_picture_shows_every_rank_and_the_trace_adds_up(tmp_path):
    problem = split_backward(opposite(2, 3, 1.0, 2.0))
    schedule = one_f_one_b(problem)
    timing = measure(problem, schedule)
    lines = picture(problem, schedule, 60).splitlines()
    assert [len(line) for line in lines] == [64, 64]
    assert set("".join(line[4:] for line in lines)) <= set("aAbBw.")
    events = trace(problem, schedule)
    busy = sum(event["dur"] for event in events if event["ph"] == "X") / 1e6
    assert busy == pytest.approx((1 - timing.bubble) * timing.makespan_s * 2)
    save_trace(tmp_path / "trace.json", problem, schedule)
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"] == events
