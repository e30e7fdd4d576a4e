"""Roles change while requests are in flight: what an instance has, it finishes; nothing starts again."""

import random

from plait.spec.cluster import Role
from plait.spec.event import Reassign
from plait.spec.request import EndReason
from tests.serving.cell import Cell


def test_rows_finish_on_an_instance_that_only_prefills_from_now_on():
    cell = Cell(64, 64, roles="mm", depth=1)
    request = cell.arrive(4, 6)
    cell.answer(0)
    cell.send(Reassign(0, Role.PREFILL))
    cell.send(Reassign(1, Role.DECODE))
    new = cell.arrive(4, 6)
    assert cell.seated(0) == [request, new]
    cell.run()
    assert cell.started == [request, new, new], "the new one went to the other instance, the old one stayed"
    assert cell.manager.counts.recomputations == 0


def test_a_prompt_that_was_begun_is_finished_and_one_that_was_not_goes_elsewhere():
    cell = Cell(64, 64, roles="pp", depth=1, step_tokens=8)
    begun, other = cell.arrive(12, 4), cell.arrive(12, 4)
    assert (cell.seated(0), cell.seated(1)) == ([begun], [other])
    queued = cell.arrive(5, 4)
    cell.answer(1)
    before = cell.seated(0) + cell.seated(1)
    assert queued in before
    cell.send(Reassign(0, Role.DECODE))
    cell.run()
    assert {cell.reason(request) for request in (begun, other, queued)} == {EndReason.LENGTH}
    assert cell.manager.counts.recomputations == 0


def test_who_waits_on_an_instance_that_comes_to_decode_stays_without_a_copy():
    cell = Cell(64, roles="p", depth=1)
    request = cell.arrive(5, 4)
    cell.answer(0)
    assert [live.id for live in cell.manager.handover.waiting] == [request]
    cell.send(Reassign(0, Role.MIXED))
    (step,) = cell.inbox[0]
    assert [(row.first, row.given) for row in step.rows] == [(5, False)]
    assert step.opened == (), "the worker knows it"
    cell.run()
    assert cell.reason(request) is EndReason.LENGTH
    assert cell.manager.counts.moves == 0


def test_an_instance_full_of_who_waits_makes_room_when_it_comes_to_decode():
    cell = Cell(16, roles="p", depth=1)
    old, young = cell.arrive(8, 4), cell.arrive(8, 4)
    cell.answer(0)
    cell.answer(0)
    cell.send(Reassign(0, Role.MIXED))
    assert (cell.seated(0), cell.waiting()) == ([old], [young])
    cell.run()
    assert [cell.ends[request].tokens for request in (old, young)] == [4, 4]


def test_a_worker_comes_back_in_the_role_that_its_instance_has():
    cell = Cell(64, 64, roles="pd")
    cell.lose(1)
    cell.send(Reassign(1, Role.PREFILL))
    cell.up(1, 64, epoch=2)
    assert cell.manager.seats[1].role is Role.PREFILL


def test_what_fits_no_instance_of_a_phase_is_refused():
    cell = Cell(64, 32, roles="pd")
    fits, long = cell.arrive(20, 13), cell.arrive(20, 14)
    assert cell.reason(fits) is None
    assert cell.reason(long) is EndReason.TOO_LONG


def test_while_a_phase_has_no_instance_requests_wait():
    cell = Cell(64, roles="d")
    request = cell.arrive(4, 4)
    assert cell.waiting() == [request]
    cell.up(1, 64)
    cell.run()
    assert cell.reason(request) is EndReason.LENGTH


def test_five_hundred_requests_over_twenty_role_changes():
    """Every one ends once, none is computed twice, no slot is left."""
    rng = random.Random(3)
    cell = Cell(400, 400, 400, 400, roles="pdpd", page=4, max_rows=40)
    script = [("pddd", "pdpd", "ppdd", "mddp", "dmpp", "dpdp", "pppd", "pdmm")[at % 8] for at in range(20)]
    letters = {"m": Role.MIXED, "p": Role.PREFILL, "d": Role.DECODE}
    lengths = {}
    for roles in script:
        for _ in range(25):
            prompt, answer = rng.randrange(1, 60), rng.randrange(1, 40)
            lengths[cell.arrive(prompt, answer)] = answer
            for _ in range(rng.randrange(6)):
                if ready := [i for i, steps in cell.inbox.items() if steps]:
                    cell.answer(rng.choice(ready))
                if cell.moves and rng.random() < 0.7:
                    cell.moved(rng.choice(list(cell.moves)))
        for instance, letter in enumerate(roles):
            cell.send(Reassign(instance, letters[letter]))
    cell.run()
    assert {id: end.tokens for id, end in cell.ends.items()} == lengths
    assert {end.reason for end in cell.ends.values()} == {EndReason.LENGTH}
    assert cell.manager.counts.recomputations == 0
    assert cell.manager.counts.moves > 100
    assert cell.manager.quiet
