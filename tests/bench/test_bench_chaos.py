"""Parts of bench/chaos.py: few faults in either world; and a run that fails is seen to."""

import asyncio
import random
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the engine extra")
from tests.tiny import tiny_folder

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def simulated(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    from chaos import simulated

    return simulated


@pytest.fixture
def live(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    from chaos import live

    return live


@pytest.fixture
def callers(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    from chaos import callers

    return callers


@pytest.mark.parametrize("number", range(7))
def test_faults_in_virtual_time_leave_nothing_behind(simulated, number):
    case = simulated.CASES[number]
    found = simulated.one_run(case, case.rate_hz, number, simulated.PAUSE_NS)
    assert found.faults.total() >= 10
    assert found.wrong == []
    assert found.leaked == 0
    assert found.longest_s <= 30
    assert found.ends.total() == simulated.REQUESTS


def test_a_token_too_few_is_seen(simulated, monkeypatch):
    """Each answer of a step that draws for several rows leaves one row's token out."""
    case, right = simulated.CASES[0], simulated.VirtualWorkers._stepped

    def wrong(self, step):
        done = right(self, step)
        if done is not None and len(done.tokens) > 8:
            return simulated.replace(done, tokens=(*done.tokens[:-1], 0))
        return done

    arrivals = simulated.arrivals_of(case, case.rate_hz, 0)
    expected = simulated.undisturbed(case, arrivals)
    monkeypatch.setattr(simulated, "undisturbed", lambda *_: expected)
    monkeypatch.setattr(simulated.VirtualWorkers, "_stepped", wrong)
    assert simulated.one_run(case, case.rate_hz, 0, simulated.PAUSE_NS).wrong


@pytest.mark.timeout(120)
async def test_real_workers_are_killed_and_cut_off_and_answers_stay_exact(live, tmp_path, zygote):
    folder = tiny_folder(tmp_path, **live.SIZES)
    asks = live.asks_of(random.Random(0), 8)
    work = asks, await live.alone(folder, asks, zygote)
    found = await live.one_run(folder, live.CASES[1], zygote, work, 6, 0)
    assert found.faults.total() >= 6
    assert found.wrong == []
    assert found.leaked == 0
    assert found.ends["length"] > 0


@pytest.mark.timeout(120)
async def test_an_order_that_is_lost_with_its_connection_is_given_again(live, tmp_path, zygote):
    folder = tiny_folder(tmp_path, **live.SIZES)
    asks = live.asks_of(random.Random(1), 4)
    expected = await live.alone(folder, asks, zygote)
    async with live.running(folder, live.Case("mixed", (live.M, live.M)), zygote) as engine:
        streams = [engine.submit(ask) for ask in asks]
        for instance in engine.fleet.members:
            engine.fleet._launcher.reset(instance)
        drawn = await asyncio.gather(*map(tokens_of, streams))
    assert drawn == expected


@pytest.mark.parametrize(
    ("how", "tokens", "comes_back", "fell", "right"),
    [
        ("length", [1, 2, 3], True, False, True),
        ("length", [1, 2], True, False, False),
        ("length", [1, 2, 4], True, False, False),
        ("InternalServerError", [1, 2], True, False, True),
        ("InternalServerError", [2], True, False, False),
        ("HTTP 503", [], True, False, True),
        ("HTTP 503", [], False, False, False),
        ("broken", [1], True, True, True),
        ("broken", [1], True, False, False),
        ("no end", [1], True, True, False),
    ],
)
def test_what_a_caller_may_get(callers, how, tokens, comes_back, fell, right):
    found = callers.Callers(None, "http://nowhere", [None], [[1, 2, 3]])
    found._judge(0, callers.Answer(tokens, how, comes_back), fell=fell)
    assert (found.found.wrong == []) is right


def test_a_stream_that_ends_without_a_reason_is_no_whole_answer(callers):
    answer = callers.Answer()
    answer.take(b'{"choices": [{"token_ids": [1, 2, 3], "finish_reason": null}]}')
    answer.take(b"[DONE]")
    assert answer.how == "no end"


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_deployment_is_besieged_over_http_and_flooded(live, tmp_path, zygote):
    from chaos.front import front
    from chaos.overload import overload

    folder = tiny_folder(tmp_path, **live.SIZES)
    asks = live.asks_of(random.Random(2), 8)
    work = asks, await live.alone(folder, asks, zygote)
    found = await front(folder, tmp_path, work, 8, 0)
    assert (found.wrong, found.leaked, found.faults.total()) == ([], 0, 8)
    assert found.ends["length"] > 0
    flood = await overload(folder, tmp_path, work, 3.0, 0)
    assert (flood.found.wrong, flood.found.leaked) == ([], 0)
    assert flood.refused > 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_alignment_whose_disk_was_full_goes_on_to_the_bit(live, tmp_path):
    from chaos.disk import disk

    found = disk(tmp_path / "alignments", 1, 0)
    assert (found.wrong, found.faults.total()) == ([], 1)


async def tokens_of(stream):
    return [token async for piece in stream for token in piece.tokens]
