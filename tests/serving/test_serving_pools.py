"""Elastic pools apart: prompts are computed by groups of one, and go on in groups of the other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.search.batching import Width
from plait.serving.batcher import BatcherConfig
from plait.serving.elasticity import ElasticConfig
from plait.serving.handover import HandoverConfig
from plait.serving.manager import GlobalManager, ManagerConfig
from plait.serving.relocations import divided
from plait.spec.cluster import Instance, Placement, Role, incomplete
from plait.spec.command import End, Token
from plait.spec.errors import UserError
from plait.spec.event import (
    Aborted,
    Arrived,
    Moved,
    MoveFailed,
    Reassign,
    StepDone,
    WorkerLost,
    WorkerUp,
)
from plait.spec.move import Cancel, Move
from plait.spec.request import EndReason, Request
from plait.spec.step import Keep, Step
from tests.serving.audit import audit

F, G, E = Role.ELASTIC_PREFILL, Role.ELASTIC_DECODE, Role.ELASTIC
WIDTHS = tuple(Width(n, 10.0 * n, 1000.0 / n, 1.0 / n) for n in (1, 2, 3, 4))


class Pools:
    """A manager of elastic instances in these roles, its steps and moves answered by hand."""

    def __init__(self, *roles, slots=1024, retries=2, up=None, **elastic):
        settings = {"widths": WIDTHS, "decode_ns": 2000.0, "chunk_ns": 1e9, **elastic}
        self.manager = GlobalManager(
            ManagerConfig(
                page=16,
                batcher=BatcherConfig(depth=1),
                handover=HandoverConfig(retries=retries),
                elastic=ElasticConfig(**settings),
                placement=Placement(tuple(Instance(i, role) for i, role in enumerate(roles))),
            )
        )
        self.now = 0
        self.steps, self.moves, self.ends, self.drawn = {}, {}, {}, {}
        self.cancelled = []
        sizes = slots if isinstance(slots, tuple) else (slots,) * len(roles)
        for instance, size in enumerate(sizes[:up]):
            self.send(WorkerUp(instance, 1, size))

    def send(self, event):
        self.now += 1
        made = self.manager.handle(event, self.now)
        for command in made:
            if isinstance(command, Step):
                self.steps[command.id] = command
            elif isinstance(command, Move):
                self.moves[command.id] = command
            elif isinstance(command, Cancel):
                self.cancelled.append(command.move)
            elif isinstance(command, Token):
                for request in command.requests:
                    self.drawn[request] = self.drawn.get(request, 0) + 1
            elif isinstance(command, End):
                assert command.request not in self.ends, "ended twice"
                self.ends[command.request] = command.reason
        audit(self.manager)
        return made

    def arrive(self, id, prompt, output=4):
        self.send(Arrived(Request(id, prompt, output)))

    def answer(self, step=None):
        """This step, or the oldest, is done."""
        step = step or next(iter(self.steps.values()))
        del self.steps[step.id]
        self.send(StepDone(step.id, tuple([int(row.draws) for row in step.rows] + [1] * len(step.again))))
        return step

    def moved(self):
        """All moves that are under way succeed."""
        for id in sorted(self.moves):
            del self.moves[id]
            self.send(Moved(id))

    def finish(self):
        while self.steps or self.moves:
            self.moved()
            if self.steps:
                self.answer()


def test_a_prompt_is_computed_in_one_pool_and_decodes_in_the_other():
    cell = Pools(F, F, G, G)
    cell.arrive(0, 900)
    step = cell.answer()
    assert step.group == (0, 1)
    (move,) = cell.moves.values()
    assert (move.source.first, move.target.first, move.count) == (0, 0, 900)
    assert move.target.instance in (2, 3)
    assert "900 tokens computed on" in move.why
    assert not cell.steps, "no step before all of it has arrived"
    cell.moved()
    (decode,) = cell.steps.values()
    assert decode.group == (move.target.instance,)
    assert decode.opened == (0,)
    cell.finish()
    assert cell.ends == {0: EndReason.LENGTH}
    assert cell.manager.quiet


def test_a_prompt_that_no_instance_has_room_for_is_divided_at_both_ends():
    cell = Pools(F, F, G, G, slots=512)
    cell.arrive(0, 900, output=8)
    cell.answer()
    moves = sorted(cell.moves.values(), key=lambda move: move.source.first)
    assert sum(move.count for move in moves) == 900
    assert {move.target.instance for move in moves} == {2, 3}
    assert [move.source.first for move in moves] == [move.target.first for move in moves]
    cell.moved()
    (decode,) = cell.steps.values()
    assert set(decode.group) == {2, 3}
    cell.finish()
    assert cell.manager.quiet
    assert cell.drawn == {0: 8}


def test_prompts_do_not_wait_for_rows_that_decode():
    cell = Pools(F, G)
    for id in range(20):
        cell.arrive(id, 30, output=50)
    while len(cell.drawn) < 20:
        prompts = [step for step in cell.steps.values() if step.group == (0,)]
        assert all(row.request not in step.again for step in prompts for row in step.rows)
        cell.moved()
        cell.answer(prompts[0] if prompts else None)
    cell.finish()
    assert len(cell.ends) == 20
    assert cell.manager.counts.preemptions == 0


def test_decode_groups_grow_by_masters_and_say_so():
    cell = Pools(F, G, G, slots=(256, 64, 64))
    cell.arrive(0, 40, output=40)
    cell.answer()
    cell.moved()
    said = []
    while cell.steps:
        said.append(cell.answer().why)
    assert [why for why in said if why] == ["scale-up: instance 2 is added as master, for 1 has no room"] or [
        why for why in said if why
    ] == ["scale-up: instance 1 is added as master, for 2 has no room"]
    assert cell.manager.counts.preemptions == 0
    assert cell.drawn == {0: 40}
    assert cell.manager.quiet


def test_the_memory_of_the_pool_that_prefills_is_the_queue():
    cell = Pools(F, G, slots=144)
    for id in range(4):
        cell.arrive(id, 60, output=60)
    cell.answer()
    cell.answer()
    assert len(cell.moves) == 1, "the one that decodes promised its room to the first"
    cell.finish()
    assert cell.manager.counts.preemptions == 0
    assert list(cell.ends) == [0, 1, 2, 3]


def test_a_move_that_fails_is_said_again_and_then_the_request_is_recomputed():
    cell = Pools(F, G, retries=1)
    cell.arrive(0, 100)
    cell.answer()
    for _ in range(2):
        (id,) = cell.moves
        del cell.moves[id]
        cell.send(MoveFailed(id, "made to fail"))
    assert not cell.moves
    assert cell.manager.counts.recomputations == 1
    cell.finish()
    assert cell.ends == {0: EndReason.LENGTH}
    assert cell.manager.quiet


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_an_instance_may_be_lost_while_a_request_moves(lost):
    cell = Pools(F, F, G, G, slots=512)
    cell.arrive(0, 900, output=3)
    cell.answer()
    cell.moves = {id: move for id, move in cell.moves.items() if move.target.instance != lost}
    cell.send(WorkerLost(lost, 1))
    for id in tuple(cell.moves):
        del cell.moves[id]
        cell.send(MoveFailed(id, "cancelled"))
    assert cell.cancelled
    assert cell.manager.counts.recomputations == (lost < 2), (
        "where all is at its source, nothing is recomputed"
    )
    cell.send(WorkerUp(lost, 2, 512))
    cell.finish()
    assert cell.ends == {0: EndReason.LENGTH}
    assert cell.drawn == {0: 3}
    assert cell.manager.quiet


def test_who_leaves_on_the_way_gives_all_slots_back():
    cell = Pools(F, G)
    cell.arrive(0, 100)
    cell.answer()
    cell.send(Aborted(0))
    assert cell.ends == {0: EndReason.ABORTED}
    (id,) = cell.moves
    assert cell.cancelled == [id]
    assert not cell.manager.quiet, "the copy may still go on"
    cell.moved()
    assert cell.manager.quiet


def test_what_is_kept_where_rows_decode_is_not_moved():
    cell = Pools(F, E, slots=512)
    cell.arrive(0, 300)
    (step,) = cell.steps.values()
    assert set(step.group) == {0, 1}
    cell.answer()
    assert [keep.instance for keep in step.rows[0].keep] == [1]
    assert not cell.moves
    cell.finish()
    assert cell.manager.quiet


def test_pools_that_could_not_serve_are_refused():
    assert not incomplete([F, G])
    assert not incomplete([F, E])
    assert "elastic" in incomplete([F, Role.DECODE, Role.MIXED])
    assert incomplete([G, Role.MIXED])
    assert incomplete([])
    with pytest.raises(UserError, match="overlap"):
        ManagerConfig(
            handover=HandoverConfig(overlap=True), placement=Placement((Instance(0, F), Instance(1, G)))
        )


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 60)), min_size=1, max_size=6),
    st.dictionaries(st.integers(3, 6), st.integers(0, 8).map(lambda pages: 16 * pages), max_size=4),
)
def test_pieces_cover_what_goes_and_fit(parts, rooms):
    gone, first = [], 0
    for instance, count in parts:
        gone.append(Keep(instance, first, count))
        first += count
    pieces = divided(gone, rooms)
    if pieces is None:
        assert first > sum(rooms.values())
        return
    assert sum(keep.count for keep, _ in pieces) == first
    at = 0
    for keep, _ in pieces:
        assert keep.first == at
        at += keep.count
    for instance, room in rooms.items():
        assert sum(keep.count for keep, target in pieces if target == instance) <= room


def test_an_instance_whose_last_request_ends_by_its_deadline_takes_its_new_role_at_once():
    cell = Pools(E, chunk_ns=1.0)
    cell.send(Arrived(Request(0, 900, 1, deadline_ns=cell.now + 4)))
    (chunk,) = cell.steps.values()
    cell.send(Reassign(0, Role.MIXED))
    cell.arrive(1, 30)
    assert list(cell.steps) == [chunk.id], "it takes nothing new"
    cell.answer()
    assert cell.ends == {0: EndReason.DEADLINE}
    cell.finish()
    assert cell.ends[1] is EndReason.LENGTH


@pytest.mark.parametrize("role", [G, Role.MIXED], ids=["to decode", "to leave the pools"])
def test_what_has_room_nowhere_else_decodes_where_it_waits(role):
    """An instance that changes its role must not wait for what only it has room for."""
    cell = Pools(F, F, G, G)
    cell.arrive(0, 1500)
    cell.send(Reassign(3, F))
    while cell.steps:
        cell.answer()
    assert 0 not in cell.ends
    assert not cell.moves
    cell.send(Reassign(1, role))
    cell.finish()
    assert cell.ends == {0: EndReason.LENGTH}
    assert cell.manager.quiet
