"""The engine on real worker processes: what callers see, and what faults do to them."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from plait.runtime.ask import Ask
from plait.runtime.fleet import FleetConfig
from plait.runtime.setup import ServeConfig, open_engine
from plait.serving.admission import AdmissionConfig
from plait.serving.batcher import BatcherConfig
from plait.serving.manager import GlobalManager, ManagerConfig
from plait.spec.command import End
from plait.spec.errors import DeadlineExceeded, EngineFailure, Overloaded, TooLong, Unsupported, UserError
from plait.spec.event import Arrived
from plait.spec.request import EndReason
from plait.spec.sampling import SamplingParams
from plait.workload.journal import read_journal, replay

GREEDY = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)
FLEET = FleetConfig(instances=1, pause_ns=1_000_000, silence_ns=3_000_000_000)


@pytest.fixture(
    scope="module", params=["processes", pytest.param("ray", marks=[pytest.mark.ray, pytest.mark.slow])]
)
def cluster(request):
    """Every test runs on child processes and on Ray."""
    if request.param == "processes":
        yield None
        return
    ray = pytest.importorskip("ray", reason="needs the cluster extra")
    ray.init(address="local", num_cpus=4, include_dashboard=False)
    yield "local"
    ray.shutdown()


@contextlib.asynccontextmanager
async def engine_of(folder, instances=1, **changes):
    fleet = changes.pop("fleet", replace(FLEET, instances=instances))
    config = ServeConfig(model=str(folder), kv_tokens=1024, exact=True, fleet=fleet)
    engine = open_engine(replace(config, **changes))
    await engine.start()
    try:
        yield engine
        await until(engine, lambda: engine.core.quiet)  # void steps may still be in flight
    finally:
        await engine.close()


async def until(engine, holds):
    """Wait for a call of the core after which this holds; the test's own timeout bounds it."""
    seen = asyncio.Event()

    def look(*_):
        if holds():
            seen.set()

    engine.driver.observers.append(look)
    look()
    await seen.wait()


async def collect(stream):
    """Text, tokens and the last piece of an answer."""
    text, tokens, last = "", [], None
    async for piece in stream:
        text += piece.text
        tokens += piece.tokens
        last = piece
    return text, tokens, last


def prompt(number, length=30):
    return tuple((number * 37 + at * at * 11) % 250 for at in range(length))


async def answers(engine, count, sampling=GREEDY):
    streams = [engine.submit(Ask(prompt(n), replace(sampling, seed=n))) for n in range(count)]
    return [tokens for _, tokens, _ in await asyncio.gather(*(collect(s) for s in streams))]


async def test_no_worker_outlives_an_event_loop_that_was_stopped(tiny_llama):
    engine = open_engine(ServeConfig(model=str(tiny_llama), kv_tokens=1024, fleet=FLEET))
    await engine.start()
    (member,) = engine.fleet.members.values()
    (pid,) = [part.process.pid for part in member.parts]
    for task in tuple(engine.fleet._keepers):
        task.cancel()
    await asyncio.wait(engine.fleet._keepers)
    await engine.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_request_goes_through(tiny_llama, cluster):
    async with engine_of(tiny_llama, cluster=cluster) as engine:
        stream = engine.submit(Ask(prompt(1), GREEDY))
        text, tokens, last = await collect(stream)
        assert len(tokens) == 12
        assert last.finish is EndReason.LENGTH
        assert text == engine.tokenizer.decode(tokens, skip_special_tokens=True)
        again = engine.submit(Ask(prompt(1), GREEDY))
        assert (await collect(again))[1] == tokens
        assert again.cached_tokens == 16  # one whole page of 30 tokens: the last token is computed
        stats = engine.stats()
        assert (stats.prompt_tokens, stats.generation_tokens) == (60, 24)
        assert stats.finished == {"length": 2}
        assert stats.kv_used_slots == 0


async def test_watchers_see_when_workers_worked(tiny_llama, cluster):
    async with engine_of(tiny_llama, cluster=cluster) as engine:
        seen = []
        engine.fleet.watchers.append(lambda instance, answer: seen.append((instance, answer)))
        await collect(engine.submit(Ask(prompt(1), GREEDY)))
    assert {instance for instance, _ in seen} == {0}
    assert sum(len(draw.tokens) for _, answer in seen for draw in answer.draws) >= 12
    for (_, before), (_, after) in pairwise(seen):
        assert before.busy_ns > 0
        assert before.begin_ns + before.busy_ns <= after.begin_ns


async def test_batch_composition_changes_no_stream(tiny_llama, cluster):
    sampled = replace(GREEDY, temperature=1.0, max_tokens=20)
    async with engine_of(tiny_llama, cluster=cluster) as engine:
        together = await answers(engine, 12, sampled)
        alone = [
            (await collect(engine.submit(Ask(prompt(n), replace(sampled, seed=n)))))[1] for n in range(12)
        ]
    assert together == alone
    small = ManagerConfig(
        page=1,
        admission=AdmissionConfig(output_share=0.05),
        batcher=BatcherConfig(step_tokens=7, depth=1, prefix_cache=False),
    )
    async with engine_of(tiny_llama, cluster=cluster, manager=small, kv_tokens=120) as engine:
        assert await answers(engine, 12, sampled) == together
        assert engine.core.counts.preemptions > 0


async def test_a_killed_worker_loses_nothing(tiny_llama, cluster):
    long = replace(GREEDY, max_tokens=120)
    async with engine_of(tiny_llama, cluster=cluster, instances=2) as engine:
        expected = await answers(engine, 8, long)
        streams = [engine.submit(Ask(prompt(n), replace(long, seed=n))) for n in range(8)]
        first = await anext(aiter(streams[0]))
        victim = engine.fleet.members[0]
        epoch = victim.epoch
        await victim.kill()
        rest = await asyncio.gather(*(collect(stream) for stream in streams))
        got = [tokens for _, tokens, _ in rest]
        assert [list(first.tokens) + got[0], *got[1:]] == expected
        assert engine.core.counts.recomputations > 0
        await until(engine, lambda: victim.epoch > epoch and victim.up)
        assert await answers(engine, 8, long) == expected


async def test_a_silent_worker_is_replaced(tiny_llama, cluster):
    long = replace(GREEDY, max_tokens=60)
    async with engine_of(tiny_llama, cluster=cluster, instances=2) as engine:
        expected = await answers(engine, 4, long)
        os.kill(engine.fleet.members[1].pid, signal.SIGSTOP)
        assert await answers(engine, 4, long) == expected


async def test_stop_strings_and_stop_tokens(tiny_llama, cluster):
    async with engine_of(tiny_llama, cluster=cluster) as engine:
        free = replace(GREEDY, max_tokens=40, temperature=1.0, seed=3)
        text, tokens, _ = await collect(engine.submit(Ask(prompt(2), free)))
        stop = next(text[at : at + 2] for at in range(3, len(text)) if "\ufffd" not in text[at : at + 2])
        cut = text[: text.index(stop)]
        got, _, last = await collect(engine.submit(Ask(prompt(2), replace(free, stop=(stop,)))))
        assert (got, last.finish, last.stop_reason) == (cut, EndReason.STOP, stop)
        got, _, _ = await collect(
            engine.submit(Ask(prompt(2), replace(free, stop=(stop,), include_stop=True)))
        )
        assert got == cut + stop
        ends = replace(free, stop_token_ids=(tokens[7],))
        _, got, last = await collect(engine.submit(Ask(prompt(2), ends)))
        assert got == tokens[: tokens.index(tokens[7]) + 1]
        assert (last.finish, last.stop_reason) == (EndReason.STOP, tokens[7])


async def test_logprobs_of_prompt_and_answer(tiny_llama, cluster):
    async with engine_of(
        tiny_llama, cluster=cluster, manager=ManagerConfig(batcher=BatcherConfig(step_tokens=16))
    ) as engine:
        wanted = replace(GREEDY, logprobs=3, prompt_logprobs=2)
        prompt_logprobs, logprobs, tokens = [], [], []
        async for piece in engine.submit(Ask(prompt(4, 40), wanted)):
            prompt_logprobs += piece.prompt_logprobs
            logprobs += piece.logprobs
            tokens += piece.tokens
        assert [entry.token for entry in prompt_logprobs] == list(prompt(4, 40)[1:])
        assert [entry.token for entry in logprobs] == tokens
        for entry in logprobs:
            assert len(entry.top) == 3
            assert entry.top[0] == (entry.token, entry.logprob)


async def test_deadline_abort_and_full_queue(tiny_llama, cluster):
    tight = ManagerConfig(admission=AdmissionConfig(max_queue=1, max_rows=1))
    async with engine_of(tiny_llama, cluster=cluster, manager=tight) as engine:
        long = replace(GREEDY, max_tokens=400)
        running = engine.submit(Ask(prompt(1), long))
        waiting = engine.submit(Ask(prompt(2), long, timeout_ns=1_000_000))
        refused = engine.submit(Ask(prompt(3), long))
        with pytest.raises(Overloaded):
            await collect(refused)
        with pytest.raises(DeadlineExceeded):
            await collect(waiting)
        running.abort()
        _, tokens, last = await collect(running)
        assert last.finish is EndReason.ABORTED
        assert len(tokens) < 400


async def test_bad_asks_are_refused_at_once(tiny_llama, cluster):
    async with engine_of(tiny_llama, cluster=cluster) as engine:
        with pytest.raises(UserError, match="empty"):
            engine.submit(Ask((), GREEDY))
        with pytest.raises(UserError, match="outside"):
            engine.submit(Ask((1, 10**6), GREEDY))
        with pytest.raises(TooLong, match="context is 512"):
            engine.submit(Ask(prompt(1, 510), GREEDY))


async def test_draining_finishes_what_was_accepted(tiny_llama, cluster):
    async with engine_of(tiny_llama, cluster=cluster) as engine:
        accepted = engine.submit(Ask(prompt(1), GREEDY))
        engine.drain()
        assert engine.health().draining
        with pytest.raises(Overloaded):
            await collect(engine.submit(Ask(prompt(2), GREEDY)))
        assert len((await collect(accepted))[1]) == 12


async def test_a_model_that_cannot_be_served_says_why(tmp_path, tiny_llama, cluster):
    folder = tmp_path / "remote"
    shutil.copytree(tiny_llama, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    engine = open_engine(ServeConfig(model=str(folder), kv_tokens=64, cluster=cluster, fleet=FLEET))
    with pytest.raises(Unsupported, match="mamba"):
        await engine.start()


async def test_workers_that_never_start_end_the_engine(tiny_llama, cluster):
    engine = open_engine(
        ServeConfig(
            model=str(tiny_llama),
            kv_tokens=64,
            cluster=cluster,
            fleet=replace(FLEET, restarts=1, start_ns=1),
        )
    )
    with pytest.raises(EngineFailure, match="no worker"):
        await engine.start()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no file that is always full")
async def test_a_full_disk_ends_the_journal_and_not_the_requests(tiny_llama, caplog):
    async with engine_of(tiny_llama, journal=Path("/dev/full")) as engine:
        for _ in range(12):  # until more was said than the journal keeps in memory
            assert all(len(tokens) == 12 for tokens in await answers(engine, 24))
            if "ends here" in caplog.text:
                break
        assert "/dev/full ends here: [Errno 28]" in caplog.text
    async with engine_of(tiny_llama, journal=Path("/dev/full")) as engine:
        assert len((await answers(engine, 1))[0]) == 12
    assert caplog.text.count("ends here") == 2, "what is found out at the end is told as well"


async def test_priorities_are_honoured_or_refused(tiny_llama, tmp_path):
    """The journal says which they were, and replays."""
    ask = Ask(prompt(1), GREEDY, priority=-1)
    async with engine_of(tiny_llama) as engine:
        with pytest.raises(UserError, match="--priority"):
            engine.submit(ask)
    manager = ManagerConfig(admission=AdmissionConfig(max_rows=1, priority_ns=60_000_000_000))
    path = tmp_path / "journal"
    async with engine_of(tiny_llama, manager=manager, journal=path) as engine:
        streams = [engine.submit(replace(ask, priority=priority)) for priority in (0, 2, 1, -1)]
        ends = []
        engine.watch(lambda now, event, commands: ends.extend(c for c in commands if isinstance(c, End)))
        await asyncio.gather(*(collect(stream) for stream in streams))
        assert [end.request for end in ends] == [streams[i].id for i in (0, 3, 2, 1)]
    history = read_journal(path)
    arrived = [entry.event.request for entry in history.entries if isinstance(entry.event, Arrived)]
    assert [request.priority for request in arrived] == [0, 2, 1, -1]
    assert replay(GlobalManager(manager), history.entries) is None
