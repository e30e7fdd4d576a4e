"""Prefill and decode on instances of different layouts, live: tokens are those of transformers."""

import itertools
import random
from dataclasses import replace

import pytest

from plait.serving.batcher import BatcherConfig
from plait.serving.handover import HandoverConfig
from plait.serving.manager import ManagerConfig
from plait.spec.cluster import Instance, Placement, Role
from plait.spec.event import Moved
from plait.worker.config import LinkConfig, Way
from tests.runtime.test_moves import Watch, placed
from tests.runtime.test_parallel import (
    FAMILIES,
    LAYOUTS,
    SIZES,
    asks,
    check,
    engine_of,
    questions_of_the_default_model,
    tokens_of,
)
from tests.scale import scaled, seed, some
from tests.tiny import tiny_folder
from tests.worker.fabrics import lacking

pytestmark = pytest.mark.usefixtures("quick_workers")

PAIRS = tuple(pair for pair in itertools.product(LAYOUTS, LAYOUTS) if pair != ((1, 1), (1, 1)))
OTHERS = {
    "qwen2": {**FAMILIES["llama"], "num_attention_heads": 4, "num_key_value_heads": 2},
    "gpt_neox": FAMILIES["gpt_neox"],
}
"""Besides llama and qwen3: neighbours that keep the same head, and as many KV heads as query heads."""


def placement(prefill, decode):
    """An instance for each (tp, pp), first those that prefill."""
    roles = [Role.PREFILL] * len(prefill) + [Role.DECODE] * len(decode)
    plans = zip(roles, (*prefill, *decode), strict=True)
    return Placement(tuple(Instance(id, role, tp, pp) for id, (role, (tp, pp)) in enumerate(plans)))


def settings(prefill, decode, *, overlap=False, way=Way.SHARED):
    """Of an engine: steps of few tokens, so that prompts are cut, and links of small parts."""
    manager = ManagerConfig(
        placement=placement(prefill, decode),
        batcher=BatcherConfig(step_tokens=48),
        handover=HandoverConfig(overlap=overlap),
    )
    return placed(manager, links=LinkConfig(part_bytes=4096, ways=(way,)))


async def moved(folder, work, **changes):
    """Near ties among the tokens of an engine in which every request decodes elsewhere than it prefills."""
    async with engine_of(folder, 1, 1, **changes) as engine:
        watch = Watch(engine)
        got = await tokens_of(engine, work)
    assert len(watch.answers) == len(watch.moves) == len(work)
    assert all(isinstance(answer, Moved) for answer in watch.answers.values())
    return check(folder, work, got)


REAL = (
    ([(3, 1)], [(1, 1)]),
    ([(1, 2)], [(3, 1)]),
    ([(1, 1)], [(1, 2)]),
    ([(1, 1), (3, 1)], [(1, 2), (1, 1)]),
)
"""(tp, pp) of the instances that prefill, and of those that decode, with the default model."""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", range(max(2, scaled(60))))
async def test_any_layout_to_any_layout_draws_the_tokens_of_transformers(case, tmp_path):
    """One to eight processes in all, also more of them than KV heads."""
    rng = random.Random(seed() * 1000 + case)
    family = ("llama", "qwen3", *OTHERS)[case % 4]
    sizes = {**SIZES, **OTHERS.get(family, FAMILIES[family])}
    fits = [pair for pair in PAIRS if all(sizes["num_attention_heads"] % tp == 0 for tp, _ in pair)]
    source, target = rng.choice(fits)
    folder = tiny_folder(tmp_path, family, **sizes)
    way = rng.choice([way for way in Way if not lacking(way)])
    print(f"{family}: {source} -> {target}, {way}")
    options = settings([source], [target], overlap=rng.random() < 0.5, way=way)
    assert await moved(folder, asks(rng, 8), **options) <= 1


async def test_two_and_two_of_different_layouts(tmp_path):
    folder = tiny_folder(tmp_path, "llama", **SIZES, **FAMILIES["llama"])
    options = settings([(4, 1), (1, 2)], [(1, 1), (2, 1)])
    assert await moved(folder, asks(random.Random(5), 12), **options) <= 1


@pytest.mark.model
@pytest.mark.timeout(900)
@pytest.mark.slow
@pytest.mark.parametrize(("prefill", "decode"), some(REAL, 1))
async def test_the_default_model_is_token_exact_across_layouts(prefill, decode):
    folder, work = questions_of_the_default_model()
    options = settings(prefill, decode)
    manager = replace(options["manager"], batcher=BatcherConfig())
    assert await moved(folder, work, **{**options, "manager": manager}) <= 1
