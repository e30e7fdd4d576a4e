"""Decisions about groups, one at a time; that they are sound together is for tests/properties to say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.search.batching import Width
from plait.serving.admission import AdmissionConfig
from plait.serving.allocation import filled, longest_chunk, most_useful, worth_pausing
from plait.serving.batcher import BatcherConfig
from plait.serving.elasticity import ElasticConfig
from plait.serving.groups import Group, groups_of
from plait.serving.live import Live
from plait.serving.manager import GlobalManager, ManagerConfig
from plait.serving.slack import due_ns, slack_ns
from plait.spec.cluster import Instance, Placement, Role
from plait.spec.command import End
from plait.spec.errors import UserError
from plait.spec.event import Aborted, Arrived, StepDone, WorkerLost, WorkerUp
from plait.spec.request import Request
from plait.spec.step import Step

WIDTHS = tuple(Width(n, 10.0 * n, 1000.0 / n, 1.0 / n) for n in (1, 2, 3, 4))


class Cell:
    """A manager of elastic instances, and its steps answered by hand."""

    def __init__(self, instances=4, slots=1024, depth=1, priority_ns=0, **elastic):
        settings = {"widths": WIDTHS, "decode_ns": 2000.0, "chunk_ns": 1e9, **elastic}
        self.manager = GlobalManager(
            ManagerConfig(
                page=16,
                admission=AdmissionConfig(priority_ns=priority_ns),
                batcher=BatcherConfig(depth=depth),
                elastic=ElasticConfig(**settings),
                placement=Placement(tuple(Instance(i, Role.ELASTIC) for i in range(instances))),
            )
        )
        self.now = 0
        self.steps, self.ends = {}, []
        for instance in range(instances):
            self.send(WorkerUp(instance, 1, slots))

    def send(self, event):
        self.now += 1
        made = self.manager.handle(event, self.now)
        new = [command for command in made if isinstance(command, Step)]
        self.steps |= {step.id: step for step in new}
        self.ends += [command.request for command in made if isinstance(command, End)]
        return new

    def arrive(self, id, prompt, output=4, priority=0):
        return self.send(Arrived(Request(id, prompt, output, priority=priority)))

    def answer(self, step):
        del self.steps[step.id]
        drawn = [int(row.draws) for row in step.rows] + [1] * len(step.again)
        return self.send(StepDone(step.id, tuple(drawn)))

    def finish(self):
        while self.steps:
            self.answer(next(iter(self.steps.values())))


def test_a_long_prompt_is_computed_by_all_that_are_idle_and_kept_by_few():
    cell = Cell()
    (step,) = cell.arrive(0, 900)
    assert step.group == (0, 1, 2, 3)
    (row,) = step.rows
    assert (row.stride, row.count, row.draws) == (4, 900, True)
    assert [keep.count for keep in row.keep] == [900]
    (decode,) = cell.answer(step)
    assert decode.group == (row.keep[0].instance,), "the others left the group with nothing"
    cell.finish()
    assert cell.ends == [0]
    assert cell.manager.quiet


def test_a_prompt_larger_than_an_instance_stays_on_several():
    cell = Cell(slots=256)
    (step,) = cell.arrive(0, 600)
    (row,) = step.rows
    assert sum(keep.count for keep in row.keep) == 600
    assert len({keep.instance for keep in row.keep}) == 3
    (decode,) = cell.answer(step)
    assert set(decode.group) == {keep.instance for keep in row.keep}
    assert decode.opened == (0,), "its master must be told the token that another one drew"
    cell.finish()
    assert cell.manager.quiet


def test_long_prompts_are_cut_and_short_ones_go_in_between():
    cell = Cell(instances=1, chunk_ns=200_000.0)
    (first,) = cell.arrive(0, 800)
    assert first.rows[0].count < 800
    assert not cell.arrive(1, 10)
    (second,) = cell.answer(first)
    assert [row.request for row in second.rows] == [1], "it does not wait for the rest of the long one"
    cell.finish()
    assert cell.manager.quiet


def test_a_full_master_is_relieved_by_another_without_moving_anything():
    cell = Cell(instances=2, slots=64)
    (step,) = cell.arrive(0, 40, output=40)
    cell.answer(step)
    cell.finish()
    assert cell.ends == [0]
    assert cell.manager.counts.preemptions == 0
    assert cell.manager.counts.moves == 0
    assert cell.manager.quiet


def test_groups_are_those_that_share_a_request():
    lives = [Live(Request(i, 1, 1), i) for i in range(3)]
    for live, parts in zip(lives, ({0: 1, 2: 1}, {1: 1}, {2: 1, 3: 1}), strict=True):
        live.parts = dict(parts)
    groups = groups_of(lives)
    assert [(group.members, list(group.lives)) for group in groups] == [((0, 2, 3), [0, 2]), ((1,), [1])]


def test_more_instances_must_be_worth_it():
    assert most_useful(WIDTHS, 4, 10_000, 10_000**2, 0.05) == 4
    assert most_useful(WIDTHS, 4, 0.001, 0.0, 0.05) == 1


def test_chunks_shrink_behind_more_context():
    width = WIDTHS[0]
    counts = [longest_chunk(width, 1e6, cached, 10_000) for cached in (0, 1000, 100_000)]
    assert counts == sorted(counts, reverse=True)
    for count, cached in zip(counts, (0, 1000, 100_000), strict=True):
        assert count == 1 or 10 + 1000 * count + count * (count + 2 * cached) <= 1e6


def test_decodes_pause_for_prompts_that_wait_long_but_not_for_nothing():
    cell = Cell()
    (job,) = cell.manager.elasticity._jobs([Live(Request(0, 100, 1), 0)])
    assert worth_pausing([job], WIDTHS, 0, 1, [1000.0], 1e9)
    assert not worth_pausing([job], WIDTHS, 1, 0, [1000.0], 1e9)
    assert not worth_pausing([job], WIDTHS, 0, 1, [10.0] * 50, 1.0)


def test_rows_that_decode_ride_in_the_prompts_of_their_instances():
    cell = Cell(instances=1, chunk_ns=200_000.0)
    (first,) = cell.arrive(0, 10, output=8)
    (decode,) = cell.answer(first)
    (both,) = cell.arrive(1, 10, output=2)
    cell.answer(decode)
    assert [row.request for row in both.rows] == [1]
    assert both.again == (0,), "it takes its next token beside the prompt"
    cell.finish()
    assert cell.ends == [1, 0]
    assert cell.manager.quiet


def test_prompts_take_the_instances_of_rows_that_are_ahead_of_their_objective():
    """By lengths alone a long prompt waits for many short answers; with an objective, only for late ones."""
    wait = {"instances": 1, "decode_ns": 1.0, "chunk_ns": 1e6}
    for tpot_ns, goes in ((0.0, False), (1e7, True), (2.0, False)):
        cell = Cell(**wait, tpot_ns=tpot_ns)
        for id in range(8):
            cell.arrive(id, 1, output=20)
        while any(not live.drawn for live in cell.manager.lives.values()):
            cell.answer(next(iter(cell.steps.values())))
        cell.now += 1000  # a step took long: late by an objective of 2 ns
        made = cell.arrive(100, 500)
        made += cell.answer(next(iter(cell.steps.values())))
        assert any(row.request == 100 for step in made for row in step.rows) is goes
        cell.finish()
        assert cell.manager.quiet


def test_prompts_that_are_due_first_go_first_and_late_ones_let_them_pass():
    for wait_ns, expected in ((0, 2), (10_000_000, 3)):
        cell = Cell(1, 4096, chunk_ns=200_000.0, ttft_times=3.0, grace=1000.0)
        (first,) = cell.arrive(0, 900)
        cell.arrive(1, 600)
        cell.arrive(2, 150)
        cell.now += wait_ns
        if wait_ns:
            cell.arrive(3, 150)  # in time, where the others are late
        (second,) = cell.answer(first)
        assert [row.request for row in second.rows] == [expected]
        cell.finish()
        assert sorted(cell.ends) == list(range(expected + 1))
        assert cell.manager.quiet


@pytest.mark.parametrize("ttft_ns", [0, 10**6])
def test_priorities_count_among_prompts_with_and_without_objectives(ttft_ns):
    cell = Cell(1, 4096, priority_ns=1000, ttft_ns=ttft_ns, chunk_ns=1.0)
    cell.arrive(0, 300, output=1)
    for id, priority in ((1, 1), (2, 0), (3, -1)):
        assert not cell.arrive(id, 300, output=1, priority=priority)
    cell.finish()
    assert [id for id in cell.ends if id] == [3, 2, 1]


@given(st.integers(1, 10**6), st.integers(0, 10**9), st.floats(0, 1e6, allow_nan=False), st.floats(0.1, 100))
def test_a_late_prompt_is_due_again(objective, now, alone, grace):
    live = Live(Request(0, 10, 1), 0)
    live.arrived_ns, live.due_ns = 5, 5.0 + objective
    due = due_ns(live, now, alone, grace)
    again = max(1.0, grace * objective)
    assert due >= live.due_ns
    assert due >= (now + alone) * (1 - 1e-9), "it can be met"
    assert due <= max(live.due_ns, now + alone + again) * (1 + 1e-9), "it does not wait for ever"


def test_nothing_goes_on_from_a_step_that_was_lost_with_a_member():
    """A row's next step may go to fewer instances, who carry it out though the one before was lost."""
    cell = Cell(2, 128, depth=2)
    (both,) = cell.arrive(0, 150, output=6)  # on both instances
    cell.answer(both)
    cell.arrive(1, 20, output=20)
    while [len(each.group) for each in cell.steps.values()] != [2, 1]:
        cell.answer(next(iter(cell.steps.values())))
    before, after = cell.steps.values()
    (home,) = after.group
    drawn = cell.manager.lives[1].drawn
    del cell.steps[before.id]
    cell.send(WorkerLost(1 - home, 1))
    cell.answer(after)
    assert cell.manager.lives[1].drawn == drawn, "its token before was never heard of"
    cell.send(WorkerUp(1 - home, 2, 128))
    cell.finish()
    assert 1 in cell.ends
    assert cell.manager.quiet


def test_a_new_master_may_be_lost_while_the_step_before_it_is_in_flight():
    """That step is answered by others, after the request lost its place."""
    cell = Cell(2, 64, depth=2)
    cell.arrive(0, 40, output=40)
    live = cell.manager.lives[0]
    first = None
    while first in (None, live.master) or not live.flying:
        cell.answer(next(iter(cell.steps.values())))
        first = live.master if first in (None, -1) else first
    (step,) = cell.steps.values()
    assert live.master not in step.group
    cell.send(WorkerLost(live.master, 1))
    assert live.flying == 1
    cell.answer(step)
    cell.send(WorkerUp(1 - step.group[0], 2, 64))
    cell.finish()
    assert cell.ends == [0]
    assert cell.manager.quiet


def test_who_comes_back_is_told_of_a_prompt_that_it_knew_and_kept_nothing_of():
    cell = Cell(2, 1024, chunk_ns=200_000.0)
    (long,) = cell.arrive(0, 900)
    assert long.group == (0, 1)
    (home,) = {keep.instance for row in long.rows for keep in row.keep}
    for id in (1, 2):
        cell.arrive(id, 100, output=1)
    short = {step.group[0]: step for step in cell.answer(long)}  # they go in between, each on its own
    cell.send(WorkerLost(1 - home, 1))
    cell.send(Aborted(short[1 - home].rows[0].request))
    del cell.steps[short[1 - home].id]
    cell.send(WorkerUp(1 - home, 2, 1024))
    (part,) = cell.answer(short[home])
    assert (part.group, part.rows[0].request, part.opened) == ((0, 1), 0, (0,))
    cell.finish()
    assert 0 in cell.ends
    assert cell.manager.quiet


def test_others_that_want_instances_make_wide_groups_dear():
    for price, members in ((0.0, 3), (5.0, 1)):
        cell = Cell(price=price)
        cell.manager.ensemble.computing[0] = 1
        (step,) = cell.arrive(0, 300)
        assert len(step.group) == members


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=1), st.integers(0, 10_000))
def test_waiting_for_its_slack_keeps_a_row_to_its_objective(rows, now):
    lives = {}
    for id, (output, drawn) in enumerate(rows):
        live = Live(Request(id, 10, output + drawn), id)
        live.drawn, live.planned, live.since_ns = drawn, 9 + drawn, 0
        lives[id] = live
    group, tpot_ns, decode_ns = Group((0,), lives), 100.0, 10.0
    waited_ns = slack_ns(group, now, tpot_ns, decode_ns, 1.0)
    for live in lives.values():
        end_ns = now + waited_ns + live.undrawn * decode_ns
        assert end_ns <= (live.drawn + live.undrawn) * tpot_ns + 1e-6


def test_sizes_that_nobody_measured_keep_no_prompt_waiting():
    one, four = WIDTHS[0], WIDTHS[3]
    assert [width.instances for width in filled((four, one), 5)] == [1, 2, 3, 4, 5]
    assert [width.beta for width in filled((four, one), 5)] == [1000.0] * 3 + [250.0] * 2
    cell = Cell(instances=3, slots=256, widths=(one, four))
    (step,) = cell.arrive(0, 600)  # it needs three instances, of which there are never four
    assert step.group == (0, 1, 2)
    cell.finish()
    assert cell.ends == [0]
    with pytest.raises(UserError, match="one instance alone"):
        ElasticConfig(widths=(four,))


def test_steps_of_prompts_say_why_they_have_their_group():
    cell = Cell(slots=4096, chunk_ns=200_000.0)
    (first,) = cell.arrive(0, 900)
    assert first.why.startswith("a prompt of ")
    assert " on 4 of 4 instances" in first.why
    (rest, *_) = cell.answer(first)
    assert "behind" in rest.why
    cell.finish()
    busy = Cell(instances=1)
    (step,) = busy.arrive(0, 32, output=64)
    (decode,) = busy.answer(step)
    (prompt,) = busy.arrive(1, 32)
    assert "slows 1 that decode there" in prompt.why
    assert not decode.why
