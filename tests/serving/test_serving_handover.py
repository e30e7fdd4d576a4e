"""`Handover`: a request between two instances keeps what it has until somebody else has it too."""

import pytest

from plait.spec.cluster import Role
from plait.spec.event import Aborted, MoveFailed, Reassign, Stopped
from plait.spec.request import EndReason
from plait.spec.step import Extent, Span
from tests.serving.cell import Cell


def used(cell: Cell) -> list[int]:
    return [cell.manager.ledger.used(instance) for instance in cell.manager.seats]


def test_a_prompt_is_computed_here_and_answered_there():
    cell = Cell(64, 64, roles="pd", depth=1)
    request = cell.arrive(5, 4)
    assert [row.draws for row in cell.answer(0).rows] == [True]
    assert cell.drawn[request] == 1, "the first token is the prefill instance's and is streamed at once"
    (move,) = cell.moves.values()
    assert (move.request, move.count, move.after) == (request, 5, ())
    assert (move.source, move.target) == (Span(0, 0, (Extent(0, 5),)), Span(1, 0, (Extent(0, 5),)))
    assert not any(cell.inbox.values()), "nothing decodes before its Moved"
    assert used(cell) == [5, 5], "slots at both ends"
    cell.moved()
    assert used(cell) == [0, 6]
    (row,) = cell.inbox[1][0].rows
    assert cell.inbox[1][0].opened == (request,)
    assert (row.first, row.count, row.given, row.draws) == (5, 1, False, True)
    assert sum(extent.count for span in row.spans for extent in span.extents) == 6, "all its slots are told"
    cell.run()
    assert (cell.reason(request), cell.ends[request].tokens) == (EndReason.LENGTH, 4)
    assert cell.manager.quiet


def test_an_answer_of_one_token_is_never_moved():
    cell = Cell(64, 64, roles="pd")
    request = cell.arrive(5, 1)
    cell.answer(0)
    assert cell.reason(request) is EndReason.LENGTH
    assert not cell.moves
    assert cell.manager.quiet


def test_the_least_loaded_instance_pulls():
    cell = Cell(64, 64, 64, roles="pdd", depth=1)
    for prompt in (20, 4, 4, 4):
        cell.arrive(prompt, 8)
        cell.answer(0)
    assert [move.target.instance for move in cell.moves.values()] == [1, 2, 2, 2]


def test_prefill_memory_is_the_queue():
    """Without room at the decode side requests stay where they are, in order, until prompts find none."""
    cell = Cell(20, 16, roles="pd", depth=1)
    first, second, third = (cell.arrive(8, 4) for _ in range(3))
    cell.answer(0)
    cell.answer(0)
    assert [move.request for move in cell.moves.values()] == [first]
    assert [live.id for live in cell.manager.handover.waiting] == [second]
    assert cell.waiting() == [third], "16 of 20 slots are taken"
    cell.moved()
    assert cell.seated(0) == [second, third], "slots of the one that went are free"
    assert not cell.moves
    cell.run()
    assert all(cell.reason(request) is EndReason.LENGTH for request in (first, second, third))


def test_an_instance_takes_no_prompts_while_too_much_waits_there():
    cell = Cell(100, 16, roles="pd", held_share=0.1, depth=1, step_tokens=8)
    for _ in range(5):
        cell.arrive(8, 4)
    for _ in range(3):
        cell.answer(0)
    assert len(cell.manager.handover.waiting) == 2
    assert not cell.inbox[0]
    assert len(cell.waiting()) == 2
    cell.run()
    assert len(cell.ends) == 5


def test_moves_into_one_instance_are_bounded():
    cell = Cell(200, 200, roles="pd", pulls=2)
    for _ in range(5):
        cell.arrive(4, 4)
    for _ in range(4):
        if cell.inbox[0]:
            cell.answer(0)
    assert len(cell.moves) == 2
    cell.moved()
    assert len(cell.moves) == 2
    assert len(cell.manager.handover.waiting) == 2


def test_blocks_that_the_target_has_are_not_moved():
    cell = Cell(64, 64, roles="pd", page=4, depth=1)
    cell.arrive(9, 8, hashes=(1, 2))
    cell.answer(0)
    cell.moved()
    cell.arrive(11, 8, hashes=(1, 2))
    cell.answer(0)
    (move,) = cell.moves.values()
    assert (move.source.first, move.target.first, move.count) == (8, 8, 3)
    assert sum(extent.count for extent in move.source.extents) == 4
    cell.run()
    assert cell.manager.counts.moved_tokens == 9 + 3


def test_where_the_target_has_all_nothing_is_moved():
    cell = Cell(64, 64, roles="pd", page=4, depth=1)
    cell.arrive(8, 8, hashes=(1, 2))
    cell.answer(0)
    cell.moved()
    twin = cell.arrive(8, 8, hashes=(1, 2))
    cell.answer(0)
    assert not cell.moves
    assert twin in cell.seated(1)
    cell.run()
    assert len(cell.ends) == 2


def test_what_was_not_moved_yet_is_not_shared():
    cell = Cell(64, 64, roles="pd", page=4, depth=1)
    for _ in range(2):
        cell.arrive(9, 8, hashes=(1, 2))
        cell.answer(0)
    assert [move.target.first for move in cell.moves.values()] == [0, 0]
    cell.run()
    assert len(cell.ends) == 2


def test_a_failed_move_is_tried_again_with_the_same_slots():
    cell = Cell(64, 64, roles="pd")
    request = cell.arrive(5, 4)
    cell.answer(0)
    failed = cell.break_off()
    (again,) = cell.moves.values()
    assert again.id > failed.id
    assert (again.source, again.target) == (failed.source, failed.target)
    cell.run()
    assert cell.reason(request) is EndReason.LENGTH
    assert (cell.manager.counts.move_retries, cell.manager.counts.recomputations) == (1, 0)


@pytest.mark.parametrize("tries", [0, 2])
def test_a_request_is_recomputed_when_its_move_failed_too_often(tries: int):
    cell = Cell(64, 64, roles="pd", tries=tries, retries=1)
    request = cell.arrive(5, 4)
    for loss in (1, 2):
        cell.answer(0)
        for _ in range(tries + 1):
            cell.break_off()
        assert cell.manager.counts.recomputations == min(loss, 1)
    assert cell.reason(request) is EndReason.FAILED
    assert cell.manager.quiet


@pytest.mark.parametrize("answer", ["moved", "break_off"])
@pytest.mark.parametrize("end", [Aborted(0), Stopped(0, 1)])
def test_who_ends_on_the_way_frees_its_slots_when_the_move_is_answered(answer: str, end: Aborted | Stopped):
    cell = Cell(64, 64, roles="pd")
    request = cell.arrive(5, 4)
    cell.answer(0)
    (move,) = cell.moves
    cell.send(end)
    assert cell.reason(request) is not None
    assert cell.cancelled == [move]
    assert used(cell) == [5, 5], "both ends are pinned"
    getattr(cell, answer)()
    assert not cell.moves
    assert cell.manager.quiet


def test_a_lost_target_costs_nothing_but_time():
    cell = Cell(64, 64, 64, roles="pdd")
    request = cell.arrive(5, 4)
    cell.answer(0)
    (move,) = cell.moves.values()
    cell.lose(move.target.instance)
    (other,) = cell.moves.values()
    assert other.target.instance != move.target.instance
    assert cell.send(MoveFailed(move.id, "late")) == []
    cell.run()
    assert cell.reason(request) is EndReason.LENGTH
    assert cell.manager.counts.recomputations == 0


def test_a_lost_source_costs_nothing_if_all_had_arrived():
    cell = Cell(64, 64, roles="pd")
    request = cell.arrive(5, 4)
    cell.answer(0)
    cell.lose(0)
    cell.moved()
    cell.run()
    assert cell.reason(request) is EndReason.LENGTH
    assert cell.manager.counts.recomputations == 0


def test_with_its_source_a_request_that_had_not_arrived_is_lost():
    cell = Cell(64, 64, 64, roles="pdp")
    request = cell.arrive(5, 4)
    cell.answer(0)
    cell.lose(0)
    cell.break_off()
    (row,) = cell.inbox[2][0].rows
    assert (row.request, row.count) == (request, 6), "prompt and first token are computed again"
    cell.run()
    assert cell.reason(request) is EndReason.LENGTH
    assert cell.drawn[request] == 4


def test_a_request_that_lost_both_ends_starts_again():
    cell = Cell(64, 64, 64, 64, roles="pdpd")
    request = cell.arrive(5, 4)
    cell.answer(0)
    target = next(iter(cell.moves.values())).target.instance
    cell.lose(0)
    cell.lose(target)
    assert request in cell.seated(2)
    cell.run()
    assert cell.reason(request) is EndReason.LENGTH


def test_a_failed_step_at_the_source_spares_what_was_computed():
    cell = Cell(64, 8, roles="pd", depth=2, step_tokens=5)
    first, second = cell.arrive(5, 4), cell.arrive(5, 4)
    cell.answer(0)
    third = cell.arrive(5, 4)
    cell.answer(0)
    assert [live.id for live in cell.manager.handover.waiting] == [second]
    cell.fail(0)
    assert cell.manager.counts.recomputations == 1, f"only {third}"
    cell.run()
    assert {cell.reason(request) for request in (first, second, third)} == {EndReason.LENGTH}


def test_a_failed_step_at_the_target_turns_back_what_shared_its_blocks():
    cell = Cell(64, 64, roles="pm", page=4, depth=1)
    cell.send(Reassign(1, Role.DECODE))
    cell.arrive(9, 8, hashes=(1, 2))
    cell.answer(0)
    cell.moved()
    sharer = cell.arrive(11, 8, hashes=(1, 2))
    cell.answer(0)
    (move,) = cell.moves.values()
    cell.fail(1)
    assert cell.cancelled == [move.id]
    cell.moved()
    (again,) = [each for each in cell.moves.values() if each.request == sharer]
    assert (again.target.first, again.count) == (0, 11)
    cell.run()
    assert len(cell.ends) == 2


def test_a_preempted_row_is_computed_where_prompts_are():
    cell = Cell(64, 20, roles="pd", depth=1, output_share=0.1)
    old, young = cell.arrive(4, 14), cell.arrive(4, 14)
    cell.run()
    assert cell.manager.counts.preemptions
    assert cell.started.count(young) > 2
    assert [cell.ends[request].tokens for request in (old, young)] == [14, 14]


def test_prompts_are_packed_whole_and_a_long_one_goes_alone():
    cell = Cell(400, 400, roles="pd", depth=1, step_tokens=16, max_rows=50)
    cell.arrive(3, 2)
    for prompt in (6, 9, 8, 40, 5):
        cell.arrive(prompt, 2)
    counts = []
    while cell.inbox[0]:
        counts.append([row.count for row in cell.answer(0).rows])
    assert counts == [[3], [6, 9], [8], [40], [5]]


def test_with_overlap_the_move_follows_the_last_step():
    cell = Cell(64, 64, roles="pd", overlap=True)
    request = cell.arrive(5, 4)
    (move,) = cell.moves.values()
    assert move.after == (cell.inbox[0][0].id,)
    cell.moved()
    assert not cell.inbox[1], "its first token is not known yet"
    cell.answer(0)
    assert cell.seated(1) == [request]
    cell.run()
    assert cell.reason(request) is EndReason.LENGTH


def test_with_overlap_a_stop_token_cancels_the_move():
    cell = Cell(64, 64, roles="pd", overlap=True)
    request = cell.arrive(5, 4)
    (move,) = cell.moves
    cell.answer(0, stopped=(0,))
    assert (cell.reason(request), cell.cancelled) == (EndReason.STOP, [move])
    cell.break_off()
    assert cell.manager.quiet


def test_in_a_hybrid_mixed_instances_take_both():
    cell = Cell(64, 64, 64, roles="pdm")
    requests = [cell.arrive(20, 4) for _ in range(6)]
    cell.run()
    assert all(cell.reason(request) is EndReason.LENGTH for request in requests)
    assert cell.manager.counts.moves > 0


def test_who_waits_for_room_goes_before_new_prompts():
    """A mixed instance would never have 30 slots free if new prompts kept it full."""
    cell = Cell(40, 40, roles="pm", depth=1, step_tokens=40)
    small = [cell.arrive(4, 8) for _ in range(6)]
    large = cell.arrive(30, 8)
    small += [cell.arrive(4, 8) for _ in range(20)]
    cell.run()
    assert len(cell.ends) == 27
    assert {cell.reason(request) for request in (*small, large)} == {EndReason.LENGTH}
