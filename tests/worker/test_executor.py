"""The executor keeps to the words of spec/step.py, and a fault costs only the rows of its step."""

from collections.abc import Iterable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plait.model.model import Model, ModelConfig
from plait.spec.sampling import Draw, Opened, SamplingParams
from plait.spec.step import Extent, Row, Span, Step
from plait.worker.executor import Executor, StepFault
from plait.worker.rows import Rows
from tests.scale import scaled
from tests.tiny import VOCAB, tiny_folder

GREEDY = SamplingParams(temperature=0)
PROMPT = tuple(range(40, 60))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return Model(ModelConfig(str(tiny_folder(tmp_path_factory.mktemp("m"))), slots=512, exact=True))


@pytest.fixture
def executor(model):
    return Executor(model, 2)


def opened(request: int, sampling: SamplingParams = GREEDY, stop: tuple[int, ...] = ()) -> Opened:
    return Opened(request, PROMPT, len(PROMPT), sampling, stop)


def whole(request: int, slot: int = 0, count: int = 64) -> Row:
    span = Span(2, 0, (Extent(slot, count),))
    return Row(request, 0, len(PROMPT), draws=True, spans=(span,), master=2)


def step(id: int, rows: tuple[Row, ...] = (), again: tuple[int, ...] = (), **other) -> Step:
    return Step(id, (2,), rows, again, **other)


def start(executor: Executor, request: int, slot: int = 0, **wishes) -> int:
    draw = executor.run(step(0, (whole(request, slot),), opened=(request,)), (opened(request, **wishes),))
    return draw[0].tokens[0]


def test_draws_come_in_the_order_of_rows_then_again(executor):
    first = [start(executor, request, 64 * request) for request in (0, 1)]
    alone = [executor.run(step(1, again=(request,)), ())[0] for request in (0, 1)]
    assert first[0] == first[1]
    draws = executor.run(step(2, (whole(5, 256),), (1, 0), opened=(5,)), (opened(5),))
    assert draws[0].tokens == (first[0],)
    assert alone[0] == alone[1]
    assert draws[1] == draws[2]


def test_closed_rows_are_taken_before_others_are_opened(executor):
    start(executor, 7)
    executor.run(step(1, (whole(7),), opened=(7,), closed=(7,)), (opened(7),))
    assert list(executor.rows.states) == [7]
    assert executor.run(step(2, closed=(7,)), ()) == ()
    assert executor.rows.states == {}


def test_stop_tokens_are_marked(executor):
    token = start(executor, 1)
    draw = executor.run(step(1, (whole(2, 64),), opened=(2,)), (opened(2, stop=(token,)),))[0]
    assert draw.stopped
    assert draw.tokens == (token,)


WISHES = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 1.0]),
    logprobs=st.sampled_from([None, 2]),
    min_tokens=st.sampled_from([0, 4]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 9),
)


@given(
    wishes=st.lists(st.tuples(WISHES, st.booleans()), min_size=1, max_size=4),
    rounds=st.lists(st.integers(1, 6), min_size=1, max_size=4),
)
@settings(max_examples=scaled(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rounds_of_a_step_draw_what_steps_draw(model, wishes, rounds):
    """Half of a tiny vocabulary ends rows that stop; a row is named again or described where it is longer."""
    stops = tuple(range(0, VOCAB, 2))
    told = tuple(opened(i, wish, stops if stop else ()) for i, (wish, stop) in enumerate(wishes))
    want: dict[int, list[Draw]] = {i: [] for i in range(len(told))}
    got: dict[int, list[Draw]] = {i: [] for i in range(len(told))}
    for at_once, found in ((False, want), (True, got)):
        one, past = Executor(model, 2), len(PROMPT)
        rows = tuple(whole(i, 64 * i, 32) for i in range(len(told)))
        first = one.run(step(0, rows, opened=tuple(range(len(told)))), told)
        going = note(found, range(len(told)), first) if not at_once else list(range(len(told)))
        if at_once:
            note(found, range(len(told)), first)
        for number, count in enumerate(rounds, 1):
            if at_once:  # also those that have stopped are named: who ordered it had not heard of that
                grown = tuple(longer(i, past) for i in going) if past <= 32 < past + count else ()
                now = step(number, grown, () if grown else tuple(going), repeat=count)
                note(found, going, one.run(now, ()))
            for at in range(count if not at_once else 0):
                grown = tuple(longer(i, past + at) for i in going) if past + at == 32 else ()
                going = note(found, going, one.run(step(number, grown, () if grown else tuple(going)), ()))
            past += count
    assert [flat(got[i]) for i in got] == [flat(want[i]) for i in want]


def longer(request: int, first: int) -> Row:
    """Its next page, where the first two are full."""
    span = Span(2, 32, (Extent(64 * request + 32, 32),))
    return Row(request, first, 1, given=False, draws=True, spans=(span,), master=2)


def note(found: dict[int, list[Draw]], requests: Iterable[int], draws: tuple[Draw, ...]) -> list[int]:
    """Keep what rows drew; returns those that have not stopped."""
    for request, draw in zip(requests, draws, strict=True):
        found[request].append(draw)
    return [
        request for request in requests if not (found[request][-1].stopped or not found[request][-1].tokens)
    ]


def flat(draws: list[Draw]) -> tuple:
    """What a row drew, however it was told."""
    tokens = tuple(token for draw in draws for token in draw.tokens)
    logprobs = tuple(each for draw in draws for each in draw.logprobs)
    return tokens, logprobs, any(draw.stopped for draw in draws)


def test_prompt_logprobs_do_not_depend_on_chunks(executor):
    wish = SamplingParams(temperature=0, logprobs=1, prompt_logprobs=2)
    one = executor.run(step(0, (whole(1),), opened=(1,)), (opened(1, wish),))[0]
    assert len(one.prompt_logprobs) == len(PROMPT) - 1
    assert [entry.token for entry in one.prompt_logprobs] == list(PROMPT[1:])
    assert all(len(entry.top) == 2 for entry in one.prompt_logprobs)
    spans, parts = (Span(2, 0, (Extent(100, 30),)),), []
    for first, past in ((0, 8), (8, 19), (19, 20)):
        row = Row(2, first, past - first, draws=past == 20, spans=spans, master=2)
        told = (opened(2, wish),) if first == 0 else ()
        parts += executor.run(step(first, (row,), opened=(2,) if told else ()), told)
        spans = ()
    assert sum((draw.prompt_logprobs for draw in parts), ()) == one.prompt_logprobs
    assert parts[-1].tokens == one.tokens
    assert parts[-1].logprobs == one.logprobs


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (lambda: Step(9, (1, 3), (whole(1, 64),), opened=(1,)), "came to instance"),
        (lambda: step(9, again=(99,)), "99"),
        (lambda: step(9, (Row(0, 20, 5, draws=True, master=2),)), "fewer tokens"),
        (lambda: step(9, (Row(0, 20, 1, stride=2, draws=True, master=2),)), "strides"),
        (lambda: step(9, (Row(0, 20, 1, draws=True, master=5),)), "master"),
        (lambda: step(9, (whole(0),), (0,)), "twice"),
        (lambda: step(9, (whole(1, 500),), opened=(1,)), "not of this pool"),
        (lambda: step(9, (whole(1, 64, 10),), opened=(1,)), "fewer slots"),
        (
            lambda: step(9, (Row(1, 0, 5, draws=True, spans=whole(1).spans, master=2),), opened=(1,)),
            "too early",
        ),
    ],
)
def test_a_fault_forgets_the_rows_of_its_step_and_no_others(executor, bad, words):
    start(executor, 0)
    kept = start(executor, 3, 128)
    wrong = bad()
    with pytest.raises(StepFault, match=words):
        executor.run(wrong, tuple(opened(request) for request in wrong.opened))
    named = {row.request for row in wrong.rows} | set(wrong.again) | set(wrong.opened)
    assert set(executor.rows.states) == {0, 3} - named
    draw = executor.run(step(10, again=(3,)), ())[0]
    assert len(draw.tokens) == 1
    assert kept == start(executor, 8, 192)


def test_logits_that_are_not_finite_are_a_fault(executor):
    start(executor, 0)
    executor.model.pool.layers[0][0] = torch.nan
    with pytest.raises(StepFault, match="finite"):
        executor.run(step(1, again=(0,)), ())
    executor.model.pool.layers[0][0] = 0


def test_rows_grow_and_are_used_again():
    rows = Rows(0, 1, 10**6)
    for request in range(40):
        rows.open(Opened(request, (1,) * (300 * request % 4000 + 1), 1, GREEDY, ()))
    assert len({state.index for state in rows.states.values()}) == 40
    for request in range(40):
        rows.close(request)
    rows.close(999)
    assert len(rows.free) == len(rows.known_R)
    assert not rows.states


def test_pages_must_be_aligned():
    rows = Rows(0, 16, 1000)
    rows.open(opened(1))
    state = rows.states[1]
    rows.extend(state, Span(0, 0, (Extent(32, 16), Extent(160, 4))))
    rows.extend(state, Span(0, 20, (Extent(164, 12), Extent(0, 16))))
    assert rows.pages_RP[state.index, :3].tolist() == [2, 10, 0]
    for span in (
        Span(0, 48, (Extent(7, 16),)),
        Span(0, 40, (Extent(56, 8),)),
        Span(0, 80, (Extent(16, 16),)),
    ):
        with pytest.raises(AssertionError):
            rows.extend(state, span)


def test_where_tokens_are_drawn_changes_none(executor):
    """Plain rows, rows that are drawn with the logits and rows that are drawn on the host, in one step."""
    wishes = (
        GREEDY,
        SamplingParams(temperature=1.5, top_p=0.9, seed=3),
        SamplingParams(temperature=0.8, top_k=9, seed=4),
        SamplingParams(temperature=0.8, seed=5, presence_penalty=0.5),
    )
    rows = tuple(whole(request, 64 * request) for request in range(4))
    states = tuple(opened(request, wish) for request, wish in enumerate(wishes))
    found = []
    for there in (False, True):
        executor.drawer.there = there
        draws = [executor.run(step(0, rows, opened=(0, 1, 2, 3)), states)]
        draws += [executor.run(step(i, again=(3, 1, 0, 2)), ()) for i in range(1, 6)]
        executor.run(step(9, closed=(0, 1, 2, 3)), ())
        found.append(draws)
    assert found[0] == found[1]
