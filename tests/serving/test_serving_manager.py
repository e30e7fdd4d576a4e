"""`GlobalManager`: every request ends exactly once, whatever happens to it, to steps and to workers."""

import pytest

from plait.spec.event import Aborted, Drain, StepDone, Stopped, WorkerLost, WorkerUp
from plait.spec.request import EndReason
from tests.serving.cell import Cell


def test_a_request_lives_and_ends():
    cell = Cell(64)
    request = cell.arrive(4, 3)
    cell.run()
    assert (cell.reason(request), cell.ends[request].tokens) == (EndReason.LENGTH, 3)
    assert cell.manager.quiet


def test_a_stop_token_ends_it():
    cell = Cell(64, depth=1)
    request = cell.arrive(4, 9)
    cell.answer()
    cell.answer(stopped=(0,))
    assert (cell.reason(request), cell.ends[request].tokens) == (EndReason.STOP, 2)


def test_steps_planned_ahead_of_a_stop_are_void():
    cell = Cell(64, depth=3)
    request = cell.arrive(4, 9)
    cell.answer(stopped=(0,))
    assert cell.ends[request].tokens == 1
    assert not cell.manager.quiet, "its slots are pinned by two steps in flight"
    cell.run()
    assert cell.drawn[request] == 1
    assert cell.manager.quiet


def test_a_stop_string_takes_back_tokens():
    cell = Cell(64, depth=1)
    request = cell.arrive(4, 9)
    for _ in range(4):
        cell.answer()
    cell.send(Stopped(request, 2))
    assert (cell.reason(request), cell.ends[request].tokens) == (EndReason.STOP, 2)
    cell.send(Stopped(request, 1))
    cell.run()
    assert cell.manager.quiet


def test_abort_frees_a_waiting_and_a_running_request():
    cell = Cell(8)
    runs, waits = cell.arrive(4, 4), cell.arrive(4, 4)
    for request in (waits, runs, runs, 99):
        cell.send(Aborted(request))
    assert cell.reason(waits) is cell.reason(runs) is EndReason.ABORTED
    cell.run()
    assert cell.manager.quiet


def test_what_fits_no_instance_is_refused_at_once():
    cell = Cell(16, 32)
    fits, long = cell.arrive(20, 13), cell.arrive(20, 14)
    assert cell.reason(fits) is None
    assert cell.reason(long) is EndReason.TOO_LONG


def test_what_came_before_any_instance_waits_for_one():
    cell = Cell()
    fits, long = cell.arrive(4, 4), cell.arrive(40, 4)
    assert cell.waiting() == [fits, long]
    cell.up(0, 16)
    assert cell.reason(long) is EndReason.TOO_LONG
    cell.run()
    assert cell.reason(fits) is EndReason.LENGTH


def test_drain_refuses_newcomers_and_finishes_the_others():
    cell = Cell(8)
    old = [cell.arrive(4, 4) for _ in range(3)]
    cell.send(Drain())
    new = cell.arrive(4, 4)
    assert cell.reason(new) is EndReason.DRAINING
    cell.run()
    assert all(cell.reason(request) is EndReason.LENGTH for request in old)
    assert cell.manager.quiet


def test_a_lost_workers_requests_go_on_elsewhere():
    cell = Cell(64, 64, depth=1)
    request = cell.arrive(4, 6)
    for _ in range(3):
        cell.answer(0)
    cell.lose(0)
    assert cell.seated(1) == [request]
    (row,) = cell.inbox[1][0].rows
    assert (row.first, row.count) == (0, 4 + 3), "prompt and drawn tokens are computed again"
    cell.run()
    assert (cell.ends[request].tokens, cell.drawn[request]) == (6, 6)
    assert cell.manager.counts.recomputations == 1


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("retries", [0, 1, 2])
def test_a_request_is_recomputed_so_often_after_failed_steps(retries: int, depth: int):
    """Several steps in flight that fail together are one loss."""
    cell = Cell(64, retries=retries, depth=depth)
    request = cell.arrive(4, 40)
    for _ in range(retries + 1):
        assert cell.reason(request) is None
        cell.answer()
        for _ in range(len(cell.inbox[0])):
            cell.fail()
    assert cell.reason(request) is EndReason.FAILED
    assert cell.manager.counts.recomputations == retries
    assert cell.manager.quiet


@pytest.mark.parametrize("retries", [0, 2])
def test_a_request_is_recomputed_so_often_after_lost_workers(retries: int):
    cell = Cell(64, retries=retries)
    request = cell.arrive(4, 6)
    for epoch in range(1, retries + 2):
        assert cell.reason(request) is None
        cell.lose(0, epoch)
        cell.up(0, 64, epoch + 1)
    assert cell.reason(request) is EndReason.FAILED


def test_requests_that_only_wait_are_not_blamed_for_a_lost_worker():
    cell = Cell(8, retries=0)
    runs, waits = cell.arrive(4, 4), cell.arrive(4, 4)
    cell.lose(0)
    assert (cell.reason(runs), cell.reason(waits)) == (EndReason.FAILED, None)
    cell.up(0, 8, epoch=2)
    cell.run()
    assert cell.reason(waits) is EndReason.LENGTH


def test_a_failed_step_makes_shared_content_unknown():
    """A follower may have been promised KV that the failed step never wrote."""
    cell = Cell(64, page=4, depth=2)
    cell.arrive(8, 4, hashes=(1, 2))
    follower = cell.arrive(9, 4, hashes=(1, 2))
    assert cell.manager.counts.prefix_hits == 8
    for _ in range(2):
        cell.fail()
    row = cell.inbox[0][0].rows[0]
    assert (row.request, row.first, row.count) == (follower, 0, 9)
    cell.run()
    assert len(cell.ends) == 2


def test_older_epochs_are_ignored():
    cell = Cell(64)
    request = cell.arrive(4, 4)
    cell.send(WorkerLost(0, epoch=0))
    assert cell.seated() == [request]
    cell.send(WorkerLost(7, epoch=1))
    cell.run()
    assert cell.reason(request) is EndReason.LENGTH


def test_a_worker_that_comes_back_unannounced_has_lost_its_kv():
    cell = Cell(64)
    request = cell.arrive(4, 4)
    cell.inbox[0].clear()
    cell.send(WorkerUp(0, epoch=2, slots=64))
    assert cell.manager.counts.recomputations == 1
    cell.run()
    assert cell.reason(request) is EndReason.LENGTH


def test_answers_of_a_lost_worker_change_nothing():
    cell = Cell(64)
    cell.arrive(4, 4)
    step = cell.inbox[0][0]
    cell.lose(0)
    assert cell.send(StepDone(step.id, (1,))) == []
    assert cell.drawn == {}


def test_equal_events_give_equal_commands():
    def outcome() -> list[object]:
        cell = Cell(24, 40, output_share=0.2, step_tokens=8)
        for at in range(12):
            cell.arrive(3 + at % 5, 4 + at % 7)
        said: list[object] = []
        while any(cell.inbox.values()):
            instance = min(i for i, steps in cell.inbox.items() if steps)
            said.append(cell.answer(instance))
        return [*said, *cell.ends.values()]

    assert outcome() == outcome()
