"""Elastic instances, live: groups draw the tokens of one process, also when members are killed."""

import asyncio
import os
import random
import signal
from dataclasses import replace

import pytest

from plait.runtime.engine import Engine
from plait.runtime.fleet import FleetConfig
from plait.runtime.setup import ServeConfig, open_engine
from plait.serving.manager import ManagerConfig
from plait.spec.cluster import Instance, Placement, Role
from plait.spec.errors import Unsupported
from plait.spec.event import StepDone
from plait.spec.step import Step
from tests.runtime.test_parallel import FAMILIES, FLEET, SIZES, asks, check, tokens_of, until
from tests.scale import scaled, seed
from tests.tiny import tiny_folder


def engine_of(folder, count: int, tp: int = 1, slots: int = 512, **changes) -> Engine:
    """Elastic instances with small pools, so that long requests need several."""
    placement = Placement(tuple(Instance(i, Role.ELASTIC, tp=tp) for i in range(count)))
    manager = ManagerConfig(page=16, placement=placement)
    fleet: FleetConfig = replace(FLEET, instances=count)
    config = {"exact": True, "kv_tokens": slots, "manager": manager, "fleet": fleet, **changes}
    return open_engine(ServeConfig(str(folder), **config))


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("count", "tp"), [(4, 1), (2, 2)])
async def test_groups_draw_the_tokens_of_transformers(count, tp, tmp_path):
    folder = tiny_folder(tmp_path, "llama", **SIZES, **FAMILIES["llama"])
    work = asks(random.Random(seed()), scaled(200) + 6)
    engine = engine_of(folder, count, tp, slots=96)
    degrees = set()
    engine.watch(
        lambda now, event, commands: degrees.update(len(c.group) for c in commands if isinstance(c, Step))
    )
    await engine.start()
    try:
        assert check(folder, work, await tokens_of(engine, work)) <= 1
    finally:
        await engine.close()
    assert max(degrees) > 1


@pytest.mark.timeout(900)
async def test_a_killed_member_costs_no_request(tmp_path):
    folder = tiny_folder(tmp_path, "llama", **SIZES, **FAMILIES["llama"])
    rng = random.Random(seed())
    work = asks(rng, 8)
    engine = engine_of(folder, 3, slots=128)
    await engine.start()
    try:
        expected = await tokens_of(engine, work)
        events = []
        engine.watch(lambda now, event, commands: events.append(event))
        for _ in range(scaled(200)):
            running = asyncio.gather(*(tokens_of(engine, [ask]) for ask in work))
            past = len(events) + rng.randint(1, 12)
            await until(engine, lambda past=past: len(events) >= past and isinstance(events[-1], StepDone))
            member = engine.fleet.members[rng.randrange(3)]
            if member.up:
                os.kill(member.pid, signal.SIGKILL)
            assert [row for (row,) in await running] == expected
    finally:
        await engine.close()


async def test_what_groups_cannot_compute_is_refused(tmp_path):
    folder = tiny_folder(tmp_path, "mistral")
    with pytest.raises(Unsupported, match="windows"):
        engine_of(folder, 2)
    mixed = open_engine(ServeConfig(str(folder), kv_tokens=256, fleet=replace(FLEET, instances=2)))
    with pytest.raises(Unsupported, match="windows"):
        mixed.reassign(0, Role.ELASTIC)
