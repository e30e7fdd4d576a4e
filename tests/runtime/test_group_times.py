"""Groups are measured on real workers, and elastic instances decide by what was measured."""

from dataclasses import replace

import pytest

from plait.runtime.ask import Ask
from plait.runtime.group_times import GroupGrid, scaling_base
from plait.runtime.setup import ServeConfig, open_engine
from plait.serving.elasticity import ElasticConfig
from plait.serving.manager import ManagerConfig
from plait.spec.cluster import Instance, Placement, Role
from plait.spec.errors import UserError
from plait.spec.sampling import SamplingParams
from plait.spec.step import Step
from tests.runtime.test_parallel import FLEET
from tests.tiny import tiny_folder

GRID = GroupGrid((1, 2), prompts=(16, 40, 96), chunk_tokens=32, batches=(1, 3), contexts=(8,), steps=4)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_what_is_measured_is_what_elastic_instances_decide_by(tmp_path):
    folder = tiny_folder(tmp_path, "llama")
    config, said = ServeConfig(str(folder), fleet=replace(FLEET, instances=1)), list[str]()
    base = await scaling_base(config, GRID, said.append)
    assert [(each.sp, each.tp) for each in base.degrees] == [(1, 1), (2, 1)]
    assert len(said) == 2
    for degree in base.degrees:
        sizes = {(chunk.tokens, chunk.cached) for chunk in degree.chunks}
        assert {(16, 0), (32, 0), (8, 32), (32, 32), (32, 64)} <= sizes
    placement = Placement(tuple(Instance(i, Role.ELASTIC) for i in range(3)))
    manager = ManagerConfig(page=16, placement=placement)
    elastic = replace(config, scaling=base, kv_tokens=192, manager=manager, fleet=replace(FLEET, instances=3))
    engine = open_engine(elastic)
    known: ElasticConfig = engine.core.config.elastic
    assert known.widths == base.widths(1)
    assert known.decode_ns == base.decode_ns(1)
    why: list[str] = []
    engine.watch(lambda now, event, made: why.extend(c.why for c in made if isinstance(c, Step) and c.why))
    await engine.start()
    try:  # three instances have to keep it, of which no group was measured
        pieces = [
            p async for p in engine.submit(Ask((7,) * 499, SamplingParams(max_tokens=2, ignore_eos=True)))
        ]
    finally:
        await engine.close()
    assert sum(len(piece.tokens) for piece in pieces) == 2
    assert "a prompt of 499 tokens on 3 of 3 instances" in why[0]


def test_times_of_groups_are_for_elastic_instances(tmp_path):
    folder = tiny_folder(tmp_path, "llama")
    from tests.cost.test_cost_scaling_base import BASE

    with pytest.raises(UserError, match="add --elastic"):
        open_engine(ServeConfig(str(folder), kv_tokens=256, scaling=BASE))
    with pytest.raises(UserError, match="begin with 1"):
        GroupGrid((2,))
