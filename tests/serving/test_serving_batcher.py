"""`Batcher`: what goes into a step, and who yields."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.spec.request import EndReason
from plait.spec.step import Step
from tests.scale import scaled
from tests.serving.cell import Cell


def prompts(step: Step) -> dict[int, int]:
    """Tokens of each row that are given, not drawn."""
    return {row.request: row.count for row in step.rows if row.given}


def test_a_prompt_is_cut_into_chunks_that_draw_only_at_the_end():
    cell = Cell(64, step_tokens=8, depth=1)
    cell.arrive(20, 2)
    steps = [cell.answer() for _ in range(3)]
    assert [(row.first, row.count, row.draws) for step in steps for row in step.rows] == [
        (0, 8, False),
        (8, 8, False),
        (16, 4, True),
    ]


@given(
    lengths=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 10)), min_size=1, max_size=12),
    step_tokens=st.integers(12, 40),
    depth=st.integers(1, 3),
)
@settings(max_examples=scaled(1000), deadline=None)
def test_a_step_computes_at_most_step_tokens(lengths: list[tuple[int, int]], step_tokens: int, depth: int):
    cell = Cell(4096, step_tokens=step_tokens, depth=depth, max_rows=12)
    for prompt, max_tokens in lengths:
        cell.arrive(prompt, max_tokens)
    computed = dict.fromkeys(range(len(lengths)), 0)
    while cell.inbox[0]:
        step = cell.answer()
        assert 0 < step.new_tokens <= step_tokens
        for row in step.rows:
            computed[row.request] += row.count
        for request in step.again:
            computed[request] += 1
    assert computed == {at: prompt + out - 1 for at, (prompt, out) in enumerate(lengths)}


def decoded(step: Step) -> set[int]:
    """Rows that take one more token."""
    return set(step.again) | {row.request for row in step.rows if not row.given}


@pytest.mark.parametrize("pp", [2, 3, 4])
def test_stages_decode_different_rows_at_once(pp: int):
    cell = Cell(4096, step_tokens=64, depth=pp, pp=pp)
    for _ in range(2 * pp):
        cell.arrive(4, 40)
    for _ in range(3 * pp):  # prompts, and first tokens
        cell.answer()
    for _ in range(4 * pp):
        steps = [decoded(step) for step in cell.inbox[0]]
        assert [len(rows) for rows in steps] == [2] * pp
        assert set().union(*steps) == set(range(2 * pp)), "a row is in two steps, or waits"
        cell.answer()


@given(
    lengths=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=12),
    pp=st.integers(1, 4),
    depth=st.integers(1, 5),
    slots=st.integers(64, 400),
)
@settings(max_examples=scaled(1000), deadline=None)
def test_stages_leave_no_row_behind(lengths: list[tuple[int, int]], pp: int, depth: int, slots: int):
    """Also with fewer steps in flight than stages, and where rows yield to each other."""
    cell = Cell(slots, step_tokens=16, depth=depth, pp=pp, output_share=0.3)
    for prompt, max_tokens in lengths:
        cell.arrive(prompt, max_tokens)
    waited = dict.fromkeys(range(len(lengths)), 0)
    while cell.inbox[0]:
        cell.answer()
        for live in cell.manager.seats[0].decoding.values():
            waited[live.id] = 0 if live.flying else waited[live.id] + 1
            assert waited[live.id] <= 2 * pp + 2, "others are planned again and again"
    assert all(cell.reason(at) is EndReason.LENGTH for at in range(len(lengths)))
    assert [cell.drawn[at] for at in range(len(lengths))] == [most for _, most in lengths]


def test_decoding_rows_go_first_and_prompts_get_the_rest():
    cell = Cell(256, step_tokens=8, depth=1)
    decoders = [cell.arrive(2, 20) for _ in range(3)]
    cell.answer()
    prompt = cell.arrive(30, 1)
    cell.answer()
    step = cell.answer()
    assert set(step.again) | {row.request for row in step.rows if not row.given} == set(decoders)
    assert prompts(step) == {prompt: 8 - len(decoders)}


def test_where_rows_fill_a_step_no_prompt_goes_along():
    cell = Cell(256, step_tokens=3, depth=1, max_rows=8)
    decoders = [cell.arrive(1, 9) for _ in range(5)]
    for _ in range(2):
        cell.answer()
    assert all(request in cell.drawn for request in decoders[:3])
    step = cell.answer()
    assert step.new_tokens == 3 == len([*step.rows, *step.again])
    assert prompts(step) == {}
    cell.run()
    assert len(cell.ends) == 5


def test_older_prompts_go_first():
    cell = Cell(256, step_tokens=8, depth=1)
    cell.arrive(1, 1)
    older, younger = cell.arrive(6, 1), cell.arrive(6, 1)
    cell.answer()
    assert prompts(cell.answer()) == {older: 6, younger: 2}
    assert prompts(cell.answer()) == {younger: 4}


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_so_many_steps_are_in_flight(depth: int):
    cell = Cell(256, depth=depth)
    cell.arrive(4, 20)
    while cell.inbox[0]:
        assert len(cell.inbox[0]) <= depth
        assert len(cell.ends) or len(cell.inbox[0]) == min(depth, 20 - cell.drawn.get(0, 0))
        cell.answer()


def test_steady_decoding_says_nothing_but_its_id():
    cell = Cell(256, page=16, depth=1)
    request = cell.arrive(10, 20)
    first, *rest = [cell.answer() for _ in range(20)]
    assert first.opened == (request,)
    described = [step for step in rest if step.rows]
    assert [row.first for step in described for row in step.rows] == [16], "one new page in its life"
    assert all(step.again == (request,) for step in rest if step not in described)
    assert [step.context_tokens for step in rest[:3]] == [11, 12, 13]


def test_rows_draw_several_tokens_a_step_where_no_prompt_waits():
    cell = Cell(256, page=4, depth=1, repeat=8)
    first = cell.arrive(4, 30)
    assert cell.answer().repeat == 1
    assert cell.answer().repeat == 8
    second = cell.arrive(6, 12)  # comes while 8 are drawn
    steps = [cell.answer() for _ in range(5)]
    assert [step.repeat for step in steps] == [8, 1, 8, 3, 1]
    assert prompts(steps[1]) == {second: 6}
    assert (cell.drawn[first], cell.reason(second)) == (30, EndReason.LENGTH)
    assert cell.manager.quiet


@pytest.mark.parametrize("pp", [1, 2])
def test_steps_of_several_tokens_hold_slots_for_all_of_them_and_pass_no_stages(pp: int):
    cell = Cell(40, depth=1, repeat=5, pp=pp)
    request = cell.arrive(3, 22)
    cell.answer()
    step = cell.inbox[0][0]
    assert step.repeat == (5 if pp == 1 else 1)
    assert step.new_tokens == step.repeat
    assert cell.manager.ledger.held(0, request) == 3 + step.repeat
    middle = step.middle
    assert (middle.repeat, middle.again, middle.context_tokens) == (
        (1, (request,), 6) if pp == 1 else (1, (), 0)
    )
    cell.run()
    assert cell.drawn[request] == 22


@given(
    lengths=st.lists(st.tuples(st.integers(1, 24), st.integers(1, 40)), min_size=1, max_size=12),
    page=st.sampled_from([1, 4]),
    depth=st.integers(1, 3),
    repeat=st.integers(1, 9),
    share=st.sampled_from([0.1, 1.0]),
)
@settings(max_examples=scaled(1000), deadline=None)
def test_whatever_a_step_draws_all_draw_what_they_may(
    lengths, page: int, depth: int, repeat: int, share: float
):
    cell = Cell(80, page=page, depth=depth, repeat=repeat, output_share=share)
    for prompt, max_tokens in lengths:
        cell.arrive(prompt, max_tokens)
    cell.run()
    assert [cell.drawn[at] for at in range(len(lengths))] == [most for _, most in lengths]
    assert not (share == 1.0 and cell.manager.counts.preemptions), "what was promised did not suffice"


def test_workers_are_told_what_to_forget():
    cell = Cell(64, depth=1)
    first = cell.arrive(4, 1)
    second = cell.arrive(4, 2)
    cell.answer()
    assert cell.reason(first) is EndReason.LENGTH
    assert cell.answer().closed == (first,)
    third = cell.arrive(4, 1)
    cell.answer()
    step = cell.answer()
    assert (step.closed, step.opened) == ((second,), (third,))


def test_a_shared_prefix_is_not_computed_again_but_its_last_token_is():
    cell = Cell(64, page=4, depth=1)
    cell.arrive(8, 4, hashes=(1, 2))
    cell.answer()
    twin = cell.arrive(8, 4, hashes=(1, 2))
    cell.answer()
    step = cell.answer()
    (row,) = [row for row in step.rows if row.request == twin]
    assert (row.first, row.count, row.draws) == (4, 4, True)
    (span,) = row.spans
    assert span.first == 0
    assert sum(extent.count for extent in span.extents) == 8, "the new member is told of all its slots"


def test_without_the_prefix_cache_nothing_is_shared():
    cell = Cell(64, page=4, prefix_cache=False)
    for _ in range(2):
        cell.arrive(8, 4, hashes=(1, 2))
    cell.run()
    assert cell.manager.counts.prefix_hits == 0


def test_the_youngest_yields_and_is_recomputed():
    cell = Cell(16, depth=1, output_share=0.1)
    old, young = cell.arrive(4, 12), cell.arrive(4, 10)
    assert cell.seated() == [old, young]
    while not cell.manager.counts.preemptions:
        cell.answer()
    assert cell.seated() == [old]
    assert cell.waiting() == [young]
    drawn = cell.drawn[young]
    cell.run()
    assert cell.started == [old, young, young]
    assert (cell.drawn[young], cell.drawn[old]) == (10, 12), f"the {drawn} tokens before it yielded stay"


@given(
    lengths=st.lists(st.tuples(st.integers(1, 24), st.integers(1, 40)), min_size=2, max_size=20),
    page=st.sampled_from([1, 4]),
    depth=st.integers(1, 3),
    share=st.sampled_from([0.01, 0.1, 0.4]),
)
@settings(max_examples=scaled(2000), deadline=None)
def test_heavy_overcommitment_always_comes_to_an_end(
    lengths: list[tuple[int, int]], page: int, depth: int, share: float
):
    """All promise to be short and none is. The oldest of all never yields, so work gets done."""
    cell = Cell(64, page=page, depth=depth, output_share=share)
    for prompt, max_tokens in lengths:
        cell.arrive(prompt, max_tokens)
    while cell.inbox[0]:
        oldest = cell.manager.lives[min(cell.manager.lives)]
        runs = oldest.instance == 0 and not oldest.leaving
        cell.answer()
        assert not runs or oldest.over or not (oldest.leaving or oldest.id in cell.waiting())
        assert cell.now < 20_000, "no end in sight"
    assert {end.reason for end in cell.ends.values()} == {EndReason.LENGTH}
    assert [cell.ends[at].tokens for at in range(len(lengths))] == [out for _, out in lengths]
    assert cell.manager.quiet
