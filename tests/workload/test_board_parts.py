"""Parts of the board: bounded whatever comes, and nothing that is counted is lost."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from plait.spec.step import Extent, Span
from plait.workload.board import intervals as intervals_module
from plait.workload.board.holdings import Holdings
from plait.workload.board.intervals import MOST, Intervals
from plait.workload.board.remarks import KEPT, LONGEST, Remarks
from plait.workload.board.strips import BARS, Strips


@settings(max_examples=50, deadline=None)
@given(gaps=st.lists(st.integers(0, 10**11), min_size=1, max_size=60))
def test_the_whole_past_is_kept_ever_more_coarsely(gaps):
    intervals, now_ns = Intervals(1000, None), 0
    for gap_ns in gaps:
        now_ns += gap_ns
        interval = intervals.at(now_ns)
        interval.arrived += 1
        interval.latency(gap_ns / 1e6, None)
    curves = intervals.curves()
    assert sum(curves.arrived) == len(gaps)
    assert len(curves.arrived) <= MOST
    last_us = curves.begin_us + len(curves.arrived) * curves.step_us
    assert last_us >= now_ns // 1000 - curves.step_us
    found = [value for value in curves.ttft_p90_ms if value is not None]
    assert found
    assert max(found) <= max(gaps) / 1e6 + 1e-3


@settings(max_examples=50, deadline=None)
@given(gaps=st.lists(st.integers(0, 10**9), min_size=1, max_size=80))
def test_a_window_slides(gaps):
    longest_ns = 10**9
    intervals, now_ns, times = Intervals(1000, longest_ns), 0, []
    for gap_ns in gaps:
        now_ns += gap_ns
        times.append(now_ns)
        intervals.at(now_ns).arrived += 1
    curves = intervals.curves()
    assert len(curves.arrived) <= MOST
    inside = sum(at // 1000 >= curves.begin_us for at in times)
    assert sum(curves.arrived) == inside
    recent = sum(at > now_ns - longest_ns // 2 for at in times)
    assert sum(curves.arrived) >= recent


def test_levels_hold_until_they_change():
    intervals = Intervals(1000, None)
    intervals.hold(500, waiting=3, running=2, kv_share=0.5)
    intervals.hold(700, waiting=0, running=1, kv_share=0.25)
    intervals.at(2500)
    curves = intervals.curves()
    assert curves.waiting == (3, 0, 0)
    assert curves.running == (2, 1, 1)
    assert curves.kv_share == (0.5, 0.25, 0.25)


def test_an_interval_remembers_so_many_latencies():
    interval = intervals_module.Interval()
    for value in range(5000):
        interval.latency(float(value), 1.0)
    assert len(interval.ttft_ms) <= intervals_module.VALUES


@settings(max_examples=50, deadline=None)
@given(
    bars=st.lists(
        st.tuples(st.integers(0, 10**8), st.integers(1, 10**8), st.sampled_from(["prefill", "decode"])),
        min_size=1,
        max_size=900,
    ),
    anew=st.booleans(),
)
def test_bars_are_few_and_do_not_overlap(bars, anew):
    strips, now_ns, busy_ns = Strips(10**11), 0, 0
    if anew:
        strips.restart(0)
    for gap_ns, long_ns, kind in bars:
        begin_ns, now_ns = now_ns + gap_ns, now_ns + gap_ns + long_ns
        strips.add(0, "compute", begin_ns, now_ns, kind, 1)
        busy_ns += long_ns
    _, [lane] = strips.shown([0], now_ns)
    assert 1 <= len(lane.compute) <= BARS
    assert all(a + long <= b + 1 for (a, long, *_), (b, *_) in pairwise(lane.compute))
    if anew:  # nothing that was done is missing, though what was idle may be covered
        assert sum(long for _, long, _, _ in lane.compute) >= busy_ns // 1000 - len(lane.compute)


def test_a_flood_of_moves_washes_no_fault_away():
    remarks = Remarks()
    remarks.say(0, "fault", "instance 3 is lost")
    for number in range(1000):
        remarks.say(number, "move", f"request {number}")
    lines = remarks.newest_first()
    assert lines[-1].text == "instance 3 is lost"
    assert [line.text for line in lines[:2]] == ["request 999", "request 998"]
    assert len(lines) == 1 + KEPT["move"]


def test_what_is_said_again_counts():
    remarks = Remarks()
    for _ in range(3):
        remarks.say(5, "refusal", "refused: queue_full")
    remarks.say(6, "why", "x" * 1000)
    assert [(line.times, len(line.text)) for line in remarks.newest_first()] == [(1, LONGEST), (3, 19)]


def test_shared_pages_count_once():
    holdings = Holdings(page=4)
    holdings.up(0, 18)
    holdings.take(1, Span(0, 0, (Extent(0, 8),)))
    holdings.take(2, Span(0, 0, (Extent(4, 5),)))
    holdings.take(9, Span(7, 0, (Extent(0, 4),)))  # of an instance that is gone
    assert (holdings.capacity(0), holdings.used(0), holdings.share) == (16, 12, 0.75)
    holdings.release(1, 0)
    assert (holdings.used(0), holdings.where(1), holdings.on(0)) == (8, (), (2,))
    holdings.lost(0)
    assert (holdings.used(0), holdings.where(2), holdings.share) == (0, (), 0.0)
