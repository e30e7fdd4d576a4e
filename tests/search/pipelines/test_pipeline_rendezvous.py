"""The deadlock check: what is lowered from a schedule never hangs; what would hang is found and named."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.search.pipelines.arrangement import Dice
from plait.search.pipelines.builders import one_f_one_b
from plait.search.pipelines.fuse import even
from plait.search.pipelines.rendezvous import deadlock, just_in_time, programs
from plait.spec.schedule import Action, Deed, Kind, PipelinedModel, PipelineProblem, Verb
from tests.scale import scaled, seed
from tests.search.pipelines.cases import problems, random_schedule


@given(problems(), st.integers(0, 2**32))
def test_programs_of_valid_schedules_end(problem, seed):
    schedule = random_schedule(problem, seed)
    found = programs(problem, schedule)
    assert deadlock(found) is None
    run = [tuple(deed.action for deed in program if deed.verb is Verb.RUN) for program in found]
    assert tuple(run) == schedule.rows


def test_both_ends_of_a_pair_agree_on_the_order():
    problem = PipelineProblem(3, (even(3, 4, 1.0),))
    found = programs(problem, one_f_one_b(problem))
    for one in range(3):
        for other in range(3):
            sent = [d.action for d in found[one] if d.verb is Verb.SEND and d.peer == other]
            received = [d.action for d in found[other] if d.verb is Verb.RECEIVE and d.peer == one]
            assert sent == received


def random_problem(dice: Dice) -> PipelineProblem:
    ranks = 2 + dice.below(7)
    pipelines = []
    for _ in range(1 + dice.below(3)):
        stages = 1 + dice.below(ranks)
        first = dice.below(ranks - stages + 1)
        places = list(range(first, first + stages))
        ones = tuple(1.0 + dice.below(3) for _ in places)
        placed = tuple(places[::-1] if dice.below(2) else places)
        pipelines.append(
            PipelinedModel(1 + dice.below(4), placed, ones, ones, ones if dice.below(2) else None)
        )
    return PipelineProblem(ranks, tuple(pipelines))


def test_random_schedules_pass_the_deadlock_check():
    """10,000 in the large suite."""
    dice, hung = Dice(seed()), 0
    for _ in range(scaled(10_000)):
        problem = random_problem(dice)
        hung += deadlock(programs(problem, random_schedule(problem, dice.next()))) is not None
    assert hung == 0


def test_the_naive_order_of_1f1b_hangs_and_the_ring_is_named():
    problem = PipelineProblem(4, (even(4, 8, 1.0),))
    found = deadlock(just_in_time(problem, one_f_one_b(problem)))
    assert found is not None
    ranks = [wait.rank for wait in found.cycle]
    assert [wait.on for wait in found.cycle] == [*ranks[1:], ranks[0]]
    assert all(f"rank {rank} sends" in str(found) for rank in ranks)


def test_seeded_deadlocks_are_found():
    """Two messages of one pair in opposite orders at their ends hang, wherever they stand."""
    problem = PipelineProblem(3, (even(3, 3, 1.0),))
    good = programs(problem, one_f_one_b(problem))
    for rank, program in enumerate(good):
        places = [i for i, deed in enumerate(program) if deed.verb is Verb.RECEIVE]
        for one, other in pairwise(places):
            bad = list(program)
            bad[one], bad[other] = bad[other], bad[one]
            if program[one].peer != program[other].peer:
                continue
            found = deadlock([*good[:rank], tuple(bad), *good[rank + 1 :]])
            assert found is not None
            assert any(wait.rank == rank for wait in found.cycle) or len(found.cycle) == 1


@pytest.mark.parametrize("verb", [Verb.SEND, Verb.RECEIVE])
def test_a_message_without_its_other_end_is_found(verb):
    action = Action(0, 0, Kind.F, 0)
    found = deadlock([(Deed(verb, action, 1),), ()])
    assert found is not None
    assert str(found) == f"rank 0 {verb.value} 0.0F0 and waits for rank 1"
