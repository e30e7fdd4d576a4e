"""Prompts on elastic instances go on from what others left, where that is worth a step of their own."""

from dataclasses import replace

import pytest

from plait.spec.cluster import Role
from plait.spec.event import Arrived, StepFailed
from plait.spec.request import Request
from tests.serving.test_serving_pools import WIDTHS, Pools

E, F, G = Role.ELASTIC, Role.ELASTIC_PREFILL, Role.ELASTIC_DECODE
BLOCKS = tuple(range(100, 140))
"""Hashes of the blocks of 16 tokens of a prompt of 640."""


def ask(cell, id, prompt, output=2, hashes=BLOCKS):
    cell.send(Arrived(Request(id, prompt, output, hashes[: prompt // 16])))
    return next(step for step in cell.steps.values() if any(row.request == id for row in step.rows))


@pytest.mark.parametrize("roles", [(E, E, E), (F, F, G)])
def test_a_prefix_is_not_computed_again(roles):
    cell = Pools(*roles)
    ask(cell, 0, 640)
    cell.finish()
    step = ask(cell, 1, 650)
    (row,) = step.rows
    assert (row.first, row.count) == (640, 10)
    assert row.keep[0].count == 640
    assert row.keep[0].instance in step.group
    cell.finish()
    assert sorted(cell.ends) == [0, 1]
    assert cell.manager.counts.prefix_hits == 640
    assert cell.manager.counts.prefix_queries == 640 + 650
    assert cell.manager.quiet


def test_of_a_prompt_that_is_known_the_last_token_is_computed():
    cell = Pools(E)
    ask(cell, 0, 640)
    cell.finish()
    (row,) = ask(cell, 1, 640).rows
    assert (row.first, row.count) == (624, 16)
    cell.finish()
    assert cell.manager.quiet


def test_a_prefix_that_saves_less_than_a_step_is_not_worth_one():
    cell = Pools(E, widths=(replace(WIDTHS[0], alpha=1e7),), chunk_ns=1e12)
    ask(cell, 0, 640)
    cell.finish()
    (row,) = ask(cell, 1, 650).rows
    assert (row.first, row.count) == (0, 650)
    cell.finish()


def test_two_at_once_share_what_a_third_left():
    cell = Pools(E, E, slots=2048)
    ask(cell, 0, 640)
    cell.finish()
    used = []
    for id in (1, 2):
        ask(cell, id, 640, output=50)
        cell.answer()
        used.append(sum(cell.manager.ledger.used(i) for i in (0, 1)))
    assert used[1] - used[0] < 640
    cell.finish()
    assert cell.manager.quiet


def test_nothing_is_known_of_an_instance_whose_step_failed():
    cell = Pools(E)
    ask(cell, 0, 640)
    cell.finish()
    step = ask(cell, 1, 300, hashes=())
    del cell.steps[step.id]
    cell.send(StepFailed(step.id, "made to fail"))
    cell.finish()
    (row,) = ask(cell, 2, 650).rows
    assert row.first == 0
    cell.finish()
    assert cell.manager.quiet
