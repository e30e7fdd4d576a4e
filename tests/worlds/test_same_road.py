"""The seam: a live run on real workers, replayed and simulated, walks the same road event for event."""

import asyncio
import random
from collections import Counter
from dataclasses import replace

import pytest

from plait.runtime.ask import Ask
from plait.runtime.fleet import FleetConfig
from plait.runtime.setup import ServeConfig, open_engine
from plait.serving.admission import AdmissionConfig
from plait.serving.batcher import BatcherConfig
from plait.serving.manager import GlobalManager, ManagerConfig
from plait.sim.recorded import Recorded
from plait.sim.world import World
from plait.spec.command import End
from plait.spec.errors import PlaitError
from plait.spec.event import Arrived, StepDone
from plait.spec.sampling import SamplingParams
from plait.spec.step import Step
from plait.workload.journal import Entry, read_journal, replay
from tests.runtime.test_engine import until

MANAGER = ManagerConfig(
    page=4,
    admission=AdmissionConfig(max_queue=150, max_rows=12, output_share=0.1),
    batcher=BatcherConfig(step_tokens=48, depth=2),
)


async def live_run(folder, path, requests=220, kill=False, manager=MANAGER):
    """Serve random requests with aborts, deadlines and preemptions; returns the streams' outcomes."""
    config = ServeConfig(
        model=str(folder),
        kv_tokens=260,
        exact=True,
        manager=manager,
        journal=path,
        fleet=FleetConfig(instances=2, pause_ns=1_000_000),
    )
    engine = open_engine(config)
    await engine.start()
    rng = random.Random(5)
    outcomes = Counter()

    async def one(number):
        prompt = tuple(rng.randrange(256) for _ in range(rng.randrange(1, 60)))
        if number % 3 == 0:
            prompt = tuple(range(24)) + prompt
        sampling = SamplingParams(
            max_tokens=rng.randrange(1, 60), temperature=rng.choice([0.0, 1.0]), seed=number
        )
        timeout_ns = 1 if number % 41 == 0 else None
        stream = engine.submit(Ask(prompt, sampling, timeout_ns))
        leave_after = rng.randrange(1, 20) if number % 7 == 0 else None
        try:
            seen = 0
            async for piece in stream:
                seen += len(piece.tokens)
                if leave_after is not None and seen >= leave_after:
                    stream.abort()
                if piece.finish:
                    outcomes[piece.finish.value] += 1
        except PlaitError as error:
            outcomes[type(error).__name__] += 1

    try:
        first = [asyncio.create_task(one(n)) for n in range(requests // 2)]
        if kill:
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            await engine.fleet.members[1].kill()
        await asyncio.wait(first[:3])
        await asyncio.gather(*first, *(one(n) for n in range(requests // 2, requests)))
        await until(engine, lambda: engine.core.quiet)  # steps of aborted requests may still be in flight
    finally:
        await engine.close()
    return outcomes, engine


def walk(entries, manager):
    """Simulate with the live run's durations and outcomes; returns the journal of the simulation."""
    recorded = Recorded(entries)
    road = []
    World(
        GlobalManager(manager),
        recorded,
        [lambda now, event, commands: road.append(Entry(now, event, tuple(commands)))],
    ).run(recorded.inputs)
    return road


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("kill", "repeat"), [(False, 1), (True, 1), (True, 5)])
async def test_live_replayed_and_simulated_agree(tiny_llama, tmp_path, kill, repeat):
    path = tmp_path / "journal.jsonl"
    manager = replace(MANAGER, batcher=replace(MANAGER.batcher, repeat=repeat))
    outcomes, engine = await live_run(tiny_llama, path, kill=kill, manager=manager)
    history = read_journal(path)
    entries = history.entries
    assert sum(isinstance(entry.event, Arrived) for entry in entries) >= 200
    assert outcomes["aborted"] >= 5, outcomes
    assert engine.core.counts.preemptions > 0
    assert engine.core.counts.prefix_hits > 0
    assert (
        sum(isinstance(c, End) for entry in entries for c in entry.commands) == sum(outcomes.values()) == 220
    )

    assert repeat == 1 or any(
        isinstance(c, Step) and c.repeat > 1 for entry in entries for c in entry.commands
    )
    difference = replay(GlobalManager(manager), entries)
    assert difference is None, str(difference)

    road = walk(entries, manager)
    for number, (live, simulated) in enumerate(zip(entries, road, strict=True)):
        assert live == simulated, f"entry {number} differs"


@pytest.mark.timeout(300)
async def test_the_comparison_can_fail(tiny_llama, tmp_path):
    """A changed outcome and a changed decision are both seen."""
    path = tmp_path / "journal.jsonl"
    await live_run(tiny_llama, path, requests=40)
    entries = list(read_journal(path).entries)
    at = next(n for n, e in enumerate(entries) if isinstance(e.event, StepDone) and any(e.event.tokens))
    event = entries[at].event
    changed = replace(entries[at], event=replace(event, tokens=tuple(0 for _ in event.tokens)))
    assert replay(GlobalManager(MANAGER), [*entries[:at], changed, *entries[at + 1 :]]) is not None
    other = replace(MANAGER, batcher=replace(MANAGER.batcher, step_tokens=MANAGER.batcher.step_tokens - 1))
    assert replay(GlobalManager(other), entries) is not None
