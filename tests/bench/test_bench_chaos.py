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


async def tokens_of(stream):
    return [token async for piece in stream for token in piece.tokens]
