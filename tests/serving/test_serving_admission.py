"""`Admission`: the memory test against brute force, order with bounded bypass, bounds, deadlines."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.serving.admission import Admission, AdmissionConfig
from plait.serving.ledger import KvLedger
from plait.serving.live import Live, Seat
from plait.spec.request import EndReason, Request
from tests.scale import scaled
from tests.serving.cell import Cell

LENGTHS = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(0, 39)), max_size=12)
"""Prompt, max_tokens and tokens drawn already (less than max_tokens)."""


def decoding(
    rows: list[tuple[int, int, int]], page: int, capacity: int, ahead: int = 0
) -> tuple[Admission, Seat]:
    """An instance on which rows decode, each with the KV of all its known tokens but the last."""
    ledger = KvLedger(page)
    ledger.add(0, capacity)
    admission, seat = Admission(AdmissionConfig(), ledger, ahead), Seat(0, 1)
    for number, (prompt, max_tokens, drawn) in enumerate(rows):
        live = Live(Request(number, prompt, max_tokens), number)
        live.drawn = min(drawn, max_tokens - 1)
        live.most = ledger.whole(live.longest)
        ledger.open(0, live.id)
        assert ledger.grow(0, live.id, live.known - 1 or 1) is not None
        seat.lives[live.id] = seat.decoding[live.id] = live
        seat.promised += live.most
    return admission, seat


def brute_force_peak(seat: Seat, page: int) -> int:
    """Most slots held at once if every row takes one token a step and leaves after its last."""
    held = {live.id: max(live.known - 1, 1) for live in seat.lives.values()}
    left = {live.id: live.longest - held[live.id] for live in seat.lives.values()}
    peak = 0
    while held:
        peak = max(peak, sum(-(-tokens // page) * page for tokens in held.values()))
        for row in [row for row, steps in left.items() if steps == 0]:
            del held[row], left[row]
        for row in held:
            held[row] += 1
            left[row] -= 1
    return peak


@given(LENGTHS)
@settings(max_examples=scaled(4000), deadline=None)
def test_the_future_peak_is_exact_for_pages_of_one_token(rows: list[tuple[int, int, int]]):
    admission, seat = decoding(rows, page=1, capacity=2000)
    assert 2000 - admission.room(seat) == brute_force_peak(seat, page=1)


@given(LENGTHS, st.sampled_from([2, 4, 16]))
@settings(max_examples=scaled(4000), deadline=None)
def test_the_future_peak_is_never_below_the_true_one(rows: list[tuple[int, int, int]], page: int):
    admission, seat = decoding(rows, page, capacity=4096)
    promised = 4096 - admission.room(seat)
    assert brute_force_peak(seat, page) <= promised <= seat.promised


def test_rows_grow_on_while_the_last_step_of_another_is_not_answered():
    """Two steps in flight, no slot to spare: the row that leaves still holds its slots for a step."""
    rows = [(5, 6, 1), (5, 6, 1), (5, 16, 1)]
    for ahead, peak in ((0, 10 + 10 + 10), (1, 10 + 10 + 10 + 2)):
        admission, seat = decoding(rows, page=1, capacity=100, ahead=ahead)
        assert 100 - admission.room(seat) == peak


def test_more_is_admitted_than_by_the_sum_of_all_maxima():
    """A long prompt about to end, and short prompts with long answers: their peaks do not meet."""
    rows = [(50, 4, 2), (4, 40, 1)]
    admission, seat = decoding(rows, page=1, capacity=100)
    assert seat.promised == 53 + 43
    # Just before the first leaves: 53 + 6. Just before the second leaves: 43.
    assert admission.room(seat) == 100 - 59
    assert admission.room(seat) > 100 - seat.promised


def test_rows_that_still_prefill_count_with_the_most_they_can_hold():
    admission, seat = decoding([(50, 4, 2), (4, 40, 1)], page=1, capacity=100)
    del seat.decoding[1]
    # 52 + 1 to come, and all 43 of the other, for nobody knows when its growth begins.
    assert admission.room(seat) == 100 - 53 - 43


@given(
    lengths=st.lists(
        st.tuples(st.integers(1, 6), st.integers(1, 16), st.integers(0, 2)), min_size=4, max_size=20
    ),
    slots=st.sampled_from([24, 32, 48]),
    page=st.sampled_from([1, 2, 4]),
    depth=st.integers(1, 3),
)
@settings(max_examples=scaled(4000), deadline=None)
def test_nothing_is_ever_preempted_when_all_tokens_are_presumed(
    lengths: list[tuple[int, int, int]], slots: int, page: int, depth: int
):
    cell = Cell(slots, page=page, depth=depth, bypass=1000, look=50)
    for prompt, max_tokens, answers in lengths:
        cell.arrive(prompt, max_tokens)
        for _ in range(answers):
            if cell.inbox[0]:
                cell.answer()
    cell.run()
    assert cell.manager.counts.preemptions == 0
    assert {end.reason for end in cell.ends.values()} == {EndReason.LENGTH}
    assert cell.manager.quiet


def test_a_smaller_share_admits_more_rows():
    cautious, bold = Cell(40), Cell(40, output_share=0.25)
    for cell in (cautious, bold):
        for _ in range(4):
            cell.arrive(4, 16)
    assert (len(cautious.seated()), len(bold.seated())) == (2, 4)


def test_first_come_first_served_while_all_fit():
    cell = Cell(1000, max_rows=2)
    for _ in range(6):
        cell.arrive(3, 3)
    cell.run()
    assert cell.started == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("bypass", [0, 1, 3])
def test_a_blocked_head_is_passed_only_so_often(bypass: int):
    cell = Cell(20, bypass=bypass)
    runs_long = cell.arrive(2, 15)
    head = cell.arrive(10, 10)
    small = [cell.arrive(1, 2) for _ in range(6)]
    for _ in range(60):
        if head in cell.started:
            break
        cell.answer()
    before_head = [request for request in cell.started if request in small]
    assert before_head == small[:bypass]
    assert runs_long in cell.ends, "the head fitted only once the pool was empty"


def test_only_so_many_requests_behind_a_blocked_head_are_tried():
    cell = Cell(20, look=2)
    cell.arrive(2, 15)
    for _ in range(3):
        cell.arrive(10, 10)
    small = cell.arrive(1, 2)
    assert small in cell.waiting(), "the head and two others are all that was looked at"
    near = Cell(20, look=3)
    near.arrive(2, 15)
    for _ in range(3):
        near.arrive(10, 10)
    assert near.arrive(1, 2) in near.seated()


def test_what_an_instance_could_never_hold_stands_in_nobodys_way_there():
    cell = Cell(16, 64, look=2)
    large = [cell.arrive(30, 30) for _ in range(5)]
    small = cell.arrive(4, 4)
    assert cell.seated(0) == [small]
    assert cell.seated(1) == large[:1]


def test_an_idle_instance_takes_what_it_can_from_behind_requests_too_large_for_it():
    """With its large neighbour gone, a queue full of large requests must not hide the small ones."""
    cell = Cell(16, 64, look=2)
    large = [cell.arrive(30, 30) for _ in range(5)]
    cell.lose(1)
    assert cell.waiting() == large
    first = cell.arrive(4, 4)
    second = cell.arrive(4, 4)
    assert cell.seated(0) == [first, second]


def test_a_request_that_yielded_goes_before_younger_ones():
    cell = Cell(24, output_share=0.1)
    for _ in range(6):
        cell.arrive(4, 12)
    for _ in range(100):
        if cell.manager.counts.preemptions:
            break
        cell.answer()
    assert cell.manager.counts.preemptions
    while cell.inbox[0]:
        assert cell.waiting() == sorted(cell.waiting())
        cell.answer()
    assert len(cell.ends) == 6


def test_one_more_than_the_queue_holds_is_refused():
    cell = Cell(8, max_queue=2)
    runs = cell.arrive(4, 4)
    waits = [cell.arrive(4, 4) for _ in range(2)]
    refused = cell.arrive(4, 4)
    assert (cell.seated(), cell.waiting()) == ([runs], waits)
    assert cell.reason(refused) is EndReason.QUEUE_FULL
    cell.run()
    assert all(cell.reason(request) is EndReason.LENGTH for request in (runs, *waits))


def test_a_deadline_comes_in_the_queue():
    cell = Cell(8)
    cell.arrive(4, 4)
    late = cell.arrive(4, 4, deadline_ns=100)
    assert cell.wakes == [100]
    cell.answer()
    assert cell.reason(late) is None
    cell.now = 99
    cell.answer()
    assert cell.reason(late) is EndReason.DEADLINE
    assert cell.ends[late].tokens == 0
    assert cell.waiting() == []


def test_a_deadline_comes_while_a_request_runs():
    cell = Cell(64)
    late = cell.arrive(4, 40, deadline_ns=100)
    for _ in range(5):
        cell.answer()
    cell.now = 200
    cell.answer()
    assert cell.reason(late) is EndReason.DEADLINE
    assert cell.ends[late].tokens == cell.drawn[late] == 6
    assert not cell.manager.quiet, "its slots stay pinned until its steps in flight are answered"
    cell.run()
    assert cell.manager.quiet


def test_one_wake_is_pending_at_a_time_and_the_earliest_wins():
    cell = Cell(8)
    cell.arrive(4, 4)
    cell.arrive(4, 4, deadline_ns=500)
    cell.arrive(4, 4, deadline_ns=900)
    cell.arrive(4, 4, deadline_ns=300)
    assert cell.wakes == [500, 300]


def test_lower_priorities_go_first_and_equal_ones_by_arrival():
    cell = Cell(100, max_rows=1, priority_ns=1000)
    for priority in (0, 0, -1, 1, 0):
        cell.arrive(10, 2, priority=priority)
    cell.run()
    assert cell.started == [0, 2, 1, 4, 3]


def test_without_a_step_priorities_are_ignored():
    cell = Cell(100, max_rows=1)
    for priority in (0, 0, -1, 1):
        cell.arrive(10, 2, priority=priority)
    cell.run()
    assert cell.started == [0, 1, 2, 3]


@given(
    st.lists(st.tuples(st.integers(-3, 3), st.integers(1, 9), st.integers(0, 2)), min_size=2, max_size=30),
    st.sampled_from([1, 5, 40]),
    st.integers(1, 3),
)
@settings(max_examples=scaled(2000), deadline=None)
def test_nobody_waits_for_more_than_the_difference_in_priority(
    arrivals: list[tuple[int, int, int]], priority_ns: int, rows: int
):
    """However many come: a request is passed only by those that came less than that later. All are of a size,
    so that no bypass hides it."""
    cell, came = Cell(100 * rows, max_rows=rows, priority_ns=priority_ns), {}
    for priority, gap, answers in arrivals:
        cell.now += gap
        came[cell.arrive(10, 2, priority=priority)] = (priority, cell.now)
        for _ in range(answers):
            if cell.inbox[0]:
                cell.answer()
    cell.run()
    assert sorted(cell.started) == sorted(came)
    for at, passing in enumerate(cell.started):
        for passed in cell.started[at + 1 :]:
            later_ns = came[passing][1] - came[passed][1]
            assert later_ns <= (came[passed][0] - came[passing][0]) * priority_ns or later_ns <= 0


def test_the_worst_priority_yields_though_it_came_first():
    cell = Cell(30, page=1, output_share=0.1, priority_ns=1000)
    cell.arrive(8, 20, priority=1)
    cell.arrive(8, 20)
    cell.run()
    assert cell.manager.counts.preemptions
    assert cell.started == [0, 1, 0]
    assert all(end.reason is EndReason.LENGTH for end in cell.ends.values())
