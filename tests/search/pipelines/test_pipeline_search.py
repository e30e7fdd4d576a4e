"""Searched schedules: exact where the optimum is known, equal in both languages, within caps, never
invalid."""

import ast
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.search.pipelines import find
from plait.search.pipelines.arrangement import listed
from plait.search.pipelines.bounds import bounds
from plait.search.pipelines.builders import one_f_one_b
from plait.search.pipelines.find import ScheduleSearch, alone_bytes, greedy, searched
from plait.search.pipelines.fuse import Share, even, fused, split_backward
from plait.search.pipelines.tasks import tasks_of
from plait.search.pipelines.timing import check, measure
from plait.spec.errors import UserError
from plait.spec.schedule import Action, Kind, PipelineProblem, PipelineSchedule
from tests.search.pipelines.cases import ROOT, opposite, problems, random_schedule, verified

native = pytest.mark.skipif(find.NATIVE is None, reason="nothing is compiled")
FAST = ScheduleSearch(moves=20_000, length=50)

# Ranks, micro-batches, Actor's and Critic's forward (backwards take twice as long) and the exact optimum.
OPTIMA = [
    ((2, 1, 1, 1), 6),
    ((2, 2, 1, 1), 12),
    ((2, 3, 1, 1), 18),
    ((2, 4, 1, 1), 24),
    ((2, 2, 2, 1), 18),
    ((2, 3, 2, 1), 27),
    ((3, 2, 1, 1), 15),
    ((3, 3, 1, 1), 21),
    ((3, 2, 2, 1), 24),
    ((4, 2, 1, 1), 16),
    ((4, 2, 2, 1), 30),
]


@native
@pytest.mark.parametrize(("case", "optimum"), OPTIMA)
def test_exact_optima_are_found_and_certified(case, optimum):
    problem = opposite(*case)
    found = searched(problem, FAST)
    assert found.timing.makespan_s == optimum
    assert found.gap == 0
    assert verified(problem, found.schedule, found.timing)[0] == optimum


@native
def test_the_optimum_of_unequal_depths_is_found():
    problem = fused([Share(even(4, 2, 1)), Share(even(2, 1, 2), reverse=True)])
    found = searched(problem, FAST)
    assert (found.timing.makespan_s, found.bound_s, found.gap) == (18, 18, 0)


def test_the_bound_covers_a_model_alone_and_a_full_rank():
    assert bounds(opposite(8, 8, 5, 2)).makespan_s == 225  # the Actor's own 1F1B
    assert bounds(opposite(8, 32, 5, 2)).makespan_s == 702  # rank 2 never idles
    assert bounds(split_backward(opposite(8, 16, 5, 2))).start_and_work_s == 346


@native
@settings(max_examples=25, deadline=None)
@given(problems(), st.integers(0, 2**32), st.booleans(), st.sampled_from([0.0, 0.1]))
def test_native_and_twin_find_the_same(problem, seed, capped, slack):
    if capped:
        problem = replace(problem, memory_bytes=(1.5 * alone_bytes(problem),) * problem.ranks)
    bound_s = bounds(problem).makespan_s
    config = ScheduleSearch(moves=300, length=2, seed=seed, patterns=0.3, slack=slack)
    rows, steps = find._search(tasks_of(problem), bound_s, config, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(find, "NATIVE", None)
        twin_rows, twin_steps = find._search(tasks_of(problem), bound_s, config, None)
    assert rows == twin_rows
    assert [step[1:] for step in steps] == [step[1:] for step in twin_steps]


@native
@given(problems(), st.lists(st.floats(0, 1), min_size=3, max_size=3))
def test_native_and_twin_list_the_same(problem, some):
    tasks = tasks_of(problem)
    preference = [some[i % 3] * i for i in range(3 * len(tasks.series))]
    ahead = [1 + i % 3 for i in range(len(tasks.series))]
    assert find._listed(tasks, preference, ahead) == listed(tasks, preference, ahead)


@settings(max_examples=20, deadline=None)
@given(problems(), st.integers(0, 2**32))
def test_what_is_found_is_a_schedule_and_keeps_the_caps(problem, seed):
    cap = 2 * sum(max(each.kept_bytes) for each in problem.models) * 2
    problem = replace(problem, memory_bytes=(cap,) * problem.ranks)
    try:
        found = searched(problem, ScheduleSearch(moves=2_000, length=5, seed=seed))
    except UserError:
        return
    check(problem, found.schedule)
    makespan, peak = verified(problem, found.schedule, found.timing)
    assert makespan == found.timing.makespan_s >= found.bound_s * (1 - 1e-9)
    assert peak <= cap * (1 + 1e-6)


@native
def test_a_cap_is_kept_at_the_price_of_time():
    problem = fused([Share(even(4, 8, 2, 3.0)), Share(even(4, 8, 1, 2.0), reverse=True)])
    loose = searched(problem, ScheduleSearch(moves=100_000))
    capped = replace(problem, memory_bytes=(12.0,) * 4)
    tight = searched(capped, ScheduleSearch(moves=100_000))
    assert max(tight.timing.peak_bytes) <= 12
    assert loose.timing.makespan_s <= tight.timing.makespan_s
    with pytest.raises(UserError, match="within the memory caps"):
        searched(replace(problem, memory_bytes=(2.5,) * 4), ScheduleSearch(moves=5_000))


@native
def test_time_within_the_slack_is_given_for_memory():
    problem = fused([Share(even(4, 8, 2, 3.0)), Share(even(4, 8, 1, 2.0), reverse=True)])
    exact = searched(problem, ScheduleSearch(moves=50_000))
    slack = searched(problem, ScheduleSearch(moves=50_000, slack=0.2))
    assert slack.timing.makespan_s <= 1.2 * slack.bound_s * (1 + 1e-9)
    assert max(slack.timing.peak_bytes) <= max(exact.timing.peak_bytes)


@native
def test_seeds_repeat_and_limits_are_honoured():
    problem = opposite(4, 8, 2, 1)
    one, again, other = (searched(problem, ScheduleSearch(moves=3_000, seed=seed)) for seed in (1, 1, 2))
    assert one.schedule == again.schedule
    assert one.schedule != other.schedule
    quick = searched(problem, ScheduleSearch(seconds=0.2, threads=2, enough_bytes=0))
    check(problem, quick.schedule)


def test_without_native_code_a_search_needs_a_limit(monkeypatch):
    monkeypatch.setattr(find, "NATIVE", None)
    problem = opposite(2, 2, 1, 1)
    with pytest.raises(UserError, match="clock"):
        searched(problem)
    ticks = iter(range(10_000))
    found = searched(problem, ScheduleSearch(seconds=50), clock=lambda: float(next(ticks)))
    assert found.timing.makespan_s == 12


@pytest.mark.parametrize("wrong", [{"moves": 5, "threads": 2}, {"seconds": 0}, {"threads": 0}, {"hot": 0.01}])
def test_configurations_that_cannot_be_are_refused(wrong):
    with pytest.raises(UserError):
        ScheduleSearch(**wrong)


@given(problems())
def test_greedy_is_a_schedule(problem):
    schedule = greedy(problem)
    check(problem, schedule)


def test_greedy_is_as_good_as_published_and_better_than_one_after_another():
    problem = fused([Share(even(8, 16, 5)), Share(even(4, 8, 4), reverse=True)])
    fused_s = measure(problem, greedy(problem)).makespan_s
    assert fused_s <= 425 < measure(problem, one_f_one_b(problem)).makespan_s


PUBLISHED = ROOT.parent / "shared" / "data" / "schedules"


@pytest.mark.skipif(not PUBLISHED.exists(), reason="needs the published schedules in ../shared/data")
@pytest.mark.parametrize(
    ("number", "makespan", "peak"), [(0, 708, 19.70), (4, 366, 18.55), (9, 613, 38.72), (11, 186, 26.24)]
)
def test_published_schedules_are_timed_as_published(number, makespan, peak):
    text = (PUBLISHED / f"flexfusion_exp{number}.txt").read_text()
    ranks = {0: 8, 4: 8, 9: 16, 11: 16}[number]
    rows = [ast.literal_eval(f"[{line.rstrip().rstrip(',')}]") for line in text.splitlines()[:ranks]]
    schedule = read(rows)
    problem = {
        0: fused([Share(even(8, 32, 5, 1.95)), Share(even(4, 16, 4, 2.0), reverse=True)]),
        4: fused([Share(even(8, 16, 5, 1.95)), Share(even(8, 16, 2, 1.0), reverse=True)]),
        9: fused([Share(even(16, 64, 2, 1.64)), Share(even(16, 64, 1, 1.0), reverse=True)]),
        11: fused([Share(even(16, 16, 2, 1.64)), Share(even(16, 16, 1, 1.0), reverse=True)]),
    }[number]
    timing = measure(problem, schedule)
    assert timing.makespan_s == makespan
    assert max(timing.peak_bytes) >= peak - 1e-3


def read(rows: list[list[list[float]]]) -> PipelineSchedule:
    """Records of a published file: model, micro-batch, stage (backwards behind forwards), start, end,
    memory."""
    last = {
        m: max(int(r[2]) for row in rows for r in row if r[0] == m)
        for m in {r[0] for row in rows for r in row}
    }
    named = []
    for row in rows:
        actions = []
        for m, k, stage, *_ in row:
            stages = (last[m] + 1) // 2
            back = stage >= stages
            at = last[m] - int(stage) if back else int(stage)
            actions.append(Action(int(m), at, Kind.B if back else Kind.F, int(k)))
        named.append(tuple(actions))
    return PipelineSchedule(tuple(named))


@given(problems(), st.integers(0, 2**32))
def test_rows_and_schedules_are_two_forms_of_one(problem, seed):
    tasks, schedule = tasks_of(problem), random_schedule(problem, seed)
    assert tasks.schedule(tasks.rows(schedule)) == schedule


def test_models_without_sizes_search_time_alone():
    problem = PipelineProblem(2, (even(2, 3, 1.0),))
    assert alone_bytes(problem) == 0
    found = searched(problem, ScheduleSearch(moves=2_000))
    assert found.timing.makespan_s == 12
