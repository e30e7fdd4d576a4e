"""Elastic pools apart, live: what one pool computes and the other answers are the tokens of transformers."""

import asyncio
import random
from dataclasses import replace

import pytest

from plait.runtime.ask import Ask
from plait.runtime.engine import Engine
from plait.runtime.setup import ServeConfig, open_engine
from plait.serving.elasticity import ElasticConfig
from plait.serving.handover import HandoverConfig
from plait.serving.manager import ManagerConfig
from plait.spec.cluster import Instance, Placement, Role
from plait.spec.errors import Unsupported, UserError
from plait.spec.move import Move
from plait.spec.step import Step
from tests.runtime.kills import outlive
from tests.runtime.test_groups import WIDTHS
from tests.runtime.test_parallel import FAMILIES, FLEET, SIZES, asks, check, tokens_of
from tests.scale import scaled, seed
from tests.tiny import tiny_folder

F, G, E = Role.ELASTIC_PREFILL, Role.ELASTIC_DECODE, Role.ELASTIC
POOLS = {
    "apart": ((F, 1), (F, 1), (G, 1), (G, 1)),
    "wide": ((F, 2), (F, 2), (G, 1), (G, 1)),
    "one": ((E, 1), (E, 1), (E, 1)),
    "both": ((F, 1), (F, 1), (E, 1), (E, 1)),
}


def engine_of(folder, pools: str, slots: int = 96, **changes) -> Engine:
    """Small pools, so that long requests need several instances of each."""
    placement = Placement(tuple(Instance(i, role, tp) for i, (role, tp) in enumerate(POOLS[pools])))
    settings = {"elastic": ElasticConfig(widths=WIDTHS), **changes}
    manager = ManagerConfig(page=16, placement=placement, **settings)
    fleet = replace(FLEET, instances=len(placement.instances))
    return open_engine(ServeConfig(str(folder), exact=True, kv_tokens=slots, manager=manager, fleet=fleet))


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "pools", ["apart", *(pytest.param(each, marks=pytest.mark.slow) for each in ("wide", "both"))]
)
async def test_both_pools_together_draw_the_tokens_of_transformers(pools, tmp_path):
    folder = tiny_folder(tmp_path, "llama", **SIZES, **FAMILIES["llama"])
    work = asks(random.Random(seed()), scaled(200) + 6)
    engine = engine_of(folder, pools)
    groups, moves = set(), []

    def see(now, event, commands):
        groups.update(command.group for command in commands if isinstance(command, Step))
        moves.extend(command for command in commands if isinstance(command, Move))

    engine.watch(see)
    await engine.start()
    try:
        assert check(folder, work, await tokens_of(engine, work)) <= 1
        assert engine.stats().kv_used_slots == 0
    finally:
        await engine.close()
    assert max(map(len, groups)) > 1
    assert pools == "both" or len(moves) >= len(work)
    assert all(move.source.instance < 2 <= move.target.instance for move in moves)
    if pools != "both":
        assert all(max(group) < 2 or min(group) >= 2 for group in groups)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_rows_that_leave_their_instances_to_prompts_draw_the_same(tmp_path):
    """Prompts come while rows decode; copies cost nothing here, so rows leave wherever they can."""
    folder = tiny_folder(tmp_path, "llama", **SIZES, **FAMILIES["llama"])
    rng, moves = random.Random(seed()), []
    free = ElasticConfig(widths=WIDTHS, decode_ns=1e6, move_token_ns=1e-3)
    engine = engine_of(folder, "one", slots=512, elastic=free)
    engine.watch(lambda _, event, commands: moves.extend(c for c in commands if isinstance(c, Move)))
    await engine.start()
    try:
        for _ in range(20):
            work = [asks(rng, 6) for _ in range(3)]
            waves = []
            for wave in work:
                waves.append(asyncio.ensure_future(tokens_of(engine, wave)))
                await asyncio.wait({waves[-1]}, timeout=0.05)
            for wave, rows in zip(work, await asyncio.gather(*waves), strict=True):
                assert check(folder, wave, rows) <= 1
            assert engine.stats().kv_used_slots == 0
            if len(moves) >= scaled(200):
                break
    finally:
        await engine.close()
    print(f"{len(moves)} moves")
    assert moves
    assert all(move.why.startswith("compaction") for move in moves)


@pytest.mark.timeout(600)
async def test_prefixes_are_not_computed_again_and_answers_are_the_same(tmp_path):
    folder = tiny_folder(tmp_path, "llama", **SIZES, **FAMILIES["llama"])
    rng = random.Random(seed())
    first = asks(rng, 4)
    again = [Ask((*ask.prompt, *range(5)), ask.sampling) for ask in first]
    engine = engine_of(folder, "one", slots=512, elastic=ElasticConfig(widths=WIDTHS[:1]))
    await engine.start()
    try:
        for work in (first, first, again):
            assert check(folder, work, await tokens_of(engine, work)) <= 1
        assert engine.stats().prefix_hits > 0
    finally:
        await engine.close()


@pytest.mark.timeout(900)
async def test_instances_of_either_pool_may_die_at_any_point(tmp_path, monkeypatch):
    folder = tiny_folder(tmp_path, "llama", **SIZES, **FAMILIES["llama"])
    engine = engine_of(folder, "apart")
    await outlive(engine, folder, scaled(60), random.Random(seed()), monkeypatch)


async def test_pools_that_cannot_work_are_refused(tmp_path):
    folder = tiny_folder(tmp_path, "llama", **SIZES, **FAMILIES["llama"])
    with pytest.raises(UserError, match="overlap"):
        engine_of(folder, "apart", handover=HandoverConfig(overlap=True))
    uneven = Placement((Instance(0, F, 1), Instance(1, F, 2), Instance(2, G, 1)))
    fleet = replace(FLEET, instances=3)
    with pytest.raises(Unsupported, match="equal tp"):
        open_engine(ServeConfig(str(folder), manager=ManagerConfig(placement=uneven), fleet=fleet))
    two = replace(FLEET, instances=2)
    with pytest.raises(UserError, match="elastic"):
        open_engine(ServeConfig(str(folder), move_bandwidth=1e9, fleet=two))
    alone = Placement((Instance(0, F), Instance(1, Role.MIXED)))
    with pytest.raises(UserError, match="elastic instance"):
        open_engine(ServeConfig(str(folder), manager=ManagerConfig(placement=alone), fleet=two))
