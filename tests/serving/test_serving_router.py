"""`Router`: to whom a request goes that several instances could run."""

import pytest

from tests.serving.cell import Cell


def test_equal_instances_take_turns():
    cell = Cell(64, 64, 64)
    for _ in range(6):
        cell.arrive(4, 4)
    assert [cell.seated(instance) for instance in range(3)] == [[0, 3], [1, 4], [2, 5]]


def test_a_known_prefix_draws_a_request():
    cell = Cell(64, 64, page=4)
    cell.arrive(3, 3)
    home = cell.arrive(12, 8, hashes=(1, 2, 3))
    assert cell.seated(1) == [home]
    cell.run()
    for _ in range(3):
        follower = cell.arrive(14, 2, hashes=(1, 2, 3))
        assert follower in cell.seated(1)
    assert cell.manager.counts.prefix_hits == 3 * 12


@pytest.mark.parametrize(("backlog", "home"), [(3, 1), (5, 0)])
def test_a_known_prefix_counts_as_much_as_a_backlog_of_its_length(backlog: int, home: int):
    cell = Cell(256, 256, page=4, step_tokens=16, depth=1)
    cell.arrive(3, 1)
    holder = cell.arrive(4, 1, hashes=(1,))
    assert cell.seated(1) == [holder]
    cell.run()
    busy = cell.arrive(4 + 16 + backlog, 1, hashes=(1,))
    assert cell.seated(1) == [busy]
    assert cell.manager.seats[1].backlog == backlog
    assert cell.arrive(8, 1, hashes=(1, 2)) in cell.seated(home)


def test_the_shorter_backlog_wins_before_the_smaller_promise():
    cell = Cell(256, 256, step_tokens=16, depth=1)
    patient = cell.arrive(2, 100)
    assert cell.seated(0) == [patient]
    cell.arrive(30, 1)
    assert cell.seated(1) == [1]
    assert cell.manager.seats[1].backlog == 14
    assert cell.arrive(2, 2) in cell.seated(0), "its prompt is computed next there, though it promised more"


def test_an_instance_with_a_step_of_prompts_ahead_gets_no_more():
    cell = Cell(256, step_tokens=8, depth=1)
    first = cell.arrive(30, 1)
    second = cell.arrive(4, 1)
    assert (cell.seated(), cell.waiting()) == ([first], [second])
    for _ in range(4):
        cell.answer()
    assert second in cell.started
