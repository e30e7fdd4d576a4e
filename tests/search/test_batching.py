"""The programme finds what trying all plans finds; native and twin agree; rough cuts cost little."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.search.batching import NATIVE, Job, Plan, Width, best_plan, coarse_cuts, cost_of, twin

WIDTHS = tuple(Width(n, 0.15 + 0.02 * n, 5e-5 / n + 2e-6, 2e-9 / n + 1e-11) for n in range(1, 129))


def jobs_of(lengths):
    return [Job(tokens, tokens, tokens * tokens, 1 / tokens) for tokens in sorted(lengths, reverse=True)]


def brute(jobs, room, widths):
    """The least cost, by trying every plan."""
    if not jobs:
        return 0.0
    best = float("inf")
    for first in range(len(jobs)):
        for right in range(1, len(room) + 1):
            for width in widths:
                left = right - width.instances
                if left >= 0 and sum(job.need for job in jobs[first:]) <= sum(room[left:right]):
                    rest = brute(jobs[:first], room[:left], widths)
                    best = min(best, rest + cost_of(jobs[first:], width))
    return best


def check(plan, jobs, room):
    """It computes every job once, in what room there is, at the cost it says."""
    past = left = 0
    total = 0.0
    for batch in plan.batches:
        assert batch.first == past
        assert left <= batch.left < batch.right <= len(room)
        assert sum(job.need for job in jobs[batch.first : batch.past]) <= sum(room[batch.left : batch.right])
        total += cost_of(jobs[batch.first : batch.past], WIDTHS[batch.right - batch.left - 1])
        past, left = batch.past, batch.right
    assert past == len(jobs)
    assert total == pytest.approx(plan.cost, rel=1e-9)


lengths = st.lists(st.integers(64, 200_000), min_size=1, max_size=5)
rooms = st.lists(st.integers(10_000, 400_000), min_size=1, max_size=4)


@given(lengths, rooms)
def test_it_finds_what_trying_all_finds(lengths, room):
    jobs, room = jobs_of(lengths), sorted(room, reverse=True)
    expected = brute(jobs, room, WIDTHS[: len(room)])
    for plan in (best_plan(jobs, room, WIDTHS), twin(jobs, room, WIDTHS[: len(room)], range(len(jobs) + 1))):
        assert plan.cost == pytest.approx(expected, rel=1e-9)
        if plan.cost < float("inf"):
            check(plan, jobs, room)
        else:
            assert plan.batches == ()


@pytest.mark.skipif(NATIVE is None, reason="nothing is compiled")
@given(st.lists(st.integers(64, 200_000), min_size=1, max_size=20), rooms, st.integers(2, 8))
def test_native_and_twin_agree(lengths, room, most):
    jobs = jobs_of(lengths)
    cuts = coarse_cuts(jobs, most)
    fast, slow = best_plan(jobs, room, WIDTHS, cuts), twin(jobs, room, WIDTHS[: len(room)], cuts)
    assert fast.cost == pytest.approx(slow.cost, rel=1e-9)


@given(lengths, rooms, st.integers(1, 400_000))
def test_one_more_instance_never_costs_more(lengths, room, more):
    jobs = jobs_of(lengths)
    with_it, without = (best_plan(jobs, rooms, WIDTHS) for rooms in ([*room, more], room))
    assert with_it.cost <= without.cost * (1 + 1e-9)


@given(st.lists(st.integers(64, 200_000), min_size=1, max_size=40), st.integers(2, 50))
def test_cuts_begin_and_end_with_the_jobs(lengths, most):
    cuts = coarse_cuts(jobs_of(lengths), most)
    assert cuts[0] == 0
    assert cuts[-1] == len(lengths)
    assert cuts == sorted(set(cuts))
    assert len(cuts) <= most + 1


def test_nothing_to_do_costs_nothing():
    assert best_plan([], [100], WIDTHS) == Plan(0.0, ())


def test_what_fits_nowhere_has_no_plan():
    assert best_plan(jobs_of([100]), [99], WIDTHS).batches == ()


def test_long_ones_get_more_instances():
    plan = best_plan(jobs_of([150_000, 100, 100]), [100_000] * 4, WIDTHS)
    long, *short = plan.batches
    assert (long.first, long.past) == (0, 1)
    assert long.right - long.left > max(batch.right - batch.left for batch in short)
