"""Rows leave an instance to prompts where these gain more by it than the rows lose."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.search.batching import Job
from plait.serving.allocation import fastest_ns, gain_of
from plait.spec.cluster import Role
from plait.spec.event import Aborted, WorkerLost, WorkerUp
from tests.serving.test_serving_pools import WIDTHS, Pools

E = Role.ELASTIC


def occupied(output=400, **elastic):
    """Rows that nobody likes to pause on instance 0; one on instance 1."""
    cell = Pools(E, E, slots=4096, up=1, price=0.0, **elastic)
    for id in range(40):
        cell.arrive(id, 1, output=output)
    while len(cell.drawn) < 40:
        cell.answer()
    cell.send(WorkerUp(1, 1, 4096))
    cell.arrive(40, 64, output=output)
    (step,) = [step for step in cell.steps.values() if any(row.given for row in step.rows)]
    assert step.group == (1,)
    cell.answer(step)
    return cell


def settle(cell):
    """Answer what is in flight of rows that are to go, until they move."""
    for _ in range(6):
        if cell.moves:
            return
        cell.answer()


def test_the_least_used_instance_is_freed_for_a_prompt():
    cell = occupied(move_token_ns=0.1)
    cell.arrive(41, 900, output=2)
    (prompt,) = [step for step in cell.steps.values() if any(row.given for row in step.rows)]
    assert prompt.group == (1,), "it does not wait for the copy"
    settle(cell)
    (move,) = cell.moves.values()
    assert (move.request, move.source.instance, move.target.instance) == (40, 1, 0)
    assert move.why.startswith("compaction: 1 rows with ")
    cell.moved()
    assert {live.master for live in cell.manager.ensemble.decoding.values()} == {0}
    cell.finish()
    assert sorted(cell.ends) == list(range(42))
    assert cell.manager.counts.preemptions == 0
    assert cell.manager.quiet


@pytest.mark.parametrize(("move_token_ns", "moves"), [(0.0, False), (1e9, False), (0.1, True)])
def test_nothing_is_moved_that_costs_more_than_it_gains(move_token_ns, moves):
    cell = occupied(move_token_ns=move_token_ns)
    cell.arrive(41, 900, output=2)
    settle(cell)
    assert bool(cell.moves) is moves
    cell.finish()
    assert cell.manager.counts.moves == moves
    assert cell.manager.quiet


def test_a_master_that_has_computed_nothing_drops_out_of_a_row_that_moves():
    """It was left with the row on it for ever, which ended in a KeyError when it was to be freed itself."""
    cell = Pools(E, E, E, slots=4096)
    for id in range(2):
        cell.arrive(id, 64, output=40)
    while len(cell.drawn) < 2:
        cell.answer()
    manager = cell.manager
    ensemble, live = manager.ensemble, manager.lives[1]
    (source,) = live.instances
    idle = next(i for i in range(3) if not ensemble.seats[i].lives)
    ensemble.appoint(live, idle, "")
    manager.relocations.rest(live, (source,), "for a test")
    settle(cell)
    (move,) = cell.moves.values()
    assert idle not in (move.source.instance, move.target.instance)
    cell.moved()
    assert live.instances == (move.target.instance,)
    assert not ensemble.seats[idle].lives
    cell.finish()
    assert cell.manager.quiet


def test_rows_that_are_late_are_not_moved():
    cell = occupied(move_token_ns=0.1, tpot_ns=1e-6)
    cell.arrive(41, 900, output=2)
    settle(cell)
    assert not cell.moves
    cell.finish()
    assert cell.manager.quiet


@pytest.mark.parametrize("event", [Aborted(40), WorkerLost(0, 1), WorkerLost(1, 1)])
@pytest.mark.parametrize("moving", [False, True])
def test_who_leaves_while_rows_rest_or_move_leaves_nothing_behind(event, moving):
    cell = occupied(output=40, move_token_ns=0.1)
    cell.arrive(41, 900, output=2)
    assert cell.manager.relocations.resting
    if moving:
        settle(cell)
        assert cell.moves
    if isinstance(event, WorkerLost):
        lost = event.instance
        cell.steps = {id: step for id, step in cell.steps.items() if lost not in step.group}
        cell.moves = {id: move for id, move in cell.moves.items() if move.target.instance != lost}
    cell.send(event)
    cell.finish()
    assert cell.manager.quiet
    assert sorted(cell.ends) == list(range(42))


@given(
    st.lists(st.integers(1, 5000), min_size=1, max_size=6),
    st.integers(0, 3),
    st.integers(1, 2),
    st.floats(0, 1e9),
)
def test_more_instances_never_make_prompts_lose(lengths, have, more, wait_ns):
    jobs = [Job(length, length, length * length, 1 / length) for length in lengths]
    gain = gain_of(jobs, WIDTHS, have, more, wait_ns)
    assert gain.saved_ns >= 0
    assert gain.with_ns == fastest_ns(WIDTHS, have + more, sum(lengths), sum(n * n for n in lengths))
    assert gain.value == pytest.approx(gain.saved_ns * sum(1 / length for length in lengths))
