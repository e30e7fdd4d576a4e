"""Elastic instances, live: groups draw the tokens of one process, also when members are killed."""

import asyncio
import random
from dataclasses import replace

import pytest

from plait.model.model import Model, ModelConfig
from plait.runtime.ask import Ask
from plait.runtime.engine import Engine
from plait.runtime.fleet import FleetConfig
from plait.runtime.setup import ServeConfig, open_engine
from plait.search.batching import Width
from plait.serving.elasticity import ElasticConfig
from plait.serving.manager import ManagerConfig
from plait.spec.cluster import Instance, Placement, Role
from plait.spec.errors import Unsupported
from plait.spec.sampling import SamplingParams, TokenLogprob
from plait.spec.step import Step
from tests.runtime.kills import outlive
from tests.runtime.test_parallel import FAMILIES, FLEET, SIZES, asks, check, tokens_of
from tests.scale import scaled, seed
from tests.tiny import tiny_folder
from tests.worker.test_group_steps import CLOSE, whole

WIDTHS = tuple(Width(n, 1e4 * n, 1e6 / n, 1e4 / n) for n in range(1, 5))
"""Groups are worth their while for all but the shortest prompts."""


def engine_of(folder, count: int, tp: int = 1, slots: int = 512, **changes) -> Engine:
    """Elastic instances with small pools, so that long requests need several."""
    placement = Placement(tuple(Instance(i, Role.ELASTIC, tp=tp) for i in range(count)))
    manager = ManagerConfig(page=16, placement=placement, elastic=ElasticConfig(widths=WIDTHS))
    fleet: FleetConfig = replace(FLEET, instances=count)
    config = {"exact": True, "kv_tokens": slots, "manager": manager, "fleet": fleet, **changes}
    return open_engine(ServeConfig(str(folder), **config))


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("count", "tp"), [(4, 1), pytest.param(2, 2, marks=pytest.mark.slow)])
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


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("count", "tp"), [(4, 1), pytest.param(2, 2, marks=pytest.mark.slow)])
async def test_log_probabilities_are_those_of_one_process(count, tp, tmp_path):
    """To 1e-5 of the largest logit, of prompts and of what is drawn, however instances are divided."""
    folder = tiny_folder(tmp_path, "llama", **SIZES, **FAMILIES["llama"])
    wish = {"temperature": 0, "ignore_eos": True, "logprobs": 3, "prompt_logprobs": 3}
    rng, worst = random.Random(seed()), 0.0
    work = [
        Ask(ask.prompt, SamplingParams(max_tokens=ask.sampling.max_tokens, **wish))
        for ask in asks(rng, scaled(200) + 6)
    ]
    engine = engine_of(folder, count, tp, slots=96)
    await engine.start()
    try:
        said = await asyncio.gather(*(_said(engine, ask) for ask in work))
    finally:
        await engine.close()
    alone = Model(ModelConfig(str(folder), slots=256, page=16, exact=True))
    for ask, (tokens, found) in zip(work, said, strict=True):
        theirs_TV = whole(alone, ask.prompt + tokens)
        size, log_TV = float(theirs_TV.abs().max()), theirs_TV.double().log_softmax(-1)
        assert len(found) == len(ask.prompt) - 1 + len(tokens)
        for at, entry in enumerate(found):
            for token, logprob in ((entry.token, entry.logprob), *entry.top):
                worst = max(worst, abs(logprob - float(log_TV[at, token])) / size)
    print(f"{len(work)} requests, log-probabilities within {worst:.1e} of the largest logit")
    assert worst <= CLOSE


async def _said(engine: Engine, ask: Ask) -> tuple[tuple[int, ...], list[TokenLogprob]]:
    """What a request draws, and the log-probabilities of its prompt and of that."""
    pieces = [piece async for piece in engine.submit(ask)]
    prompt = [entry for piece in pieces for entry in piece.prompt_logprobs]
    own = [entry for piece in pieces for entry in piece.logprobs]
    return tuple(token for piece in pieces for token in piece.tokens), prompt + own


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("tp", [1, pytest.param(2, marks=pytest.mark.slow)])
async def test_members_may_die_at_any_point(tp, tmp_path, monkeypatch):
    """In the ring, while they keep what passes, while they ask and answer: what was lost is recomputed, or
    a request ends with an error that says so; nothing is left behind."""
    folder = tiny_folder(tmp_path, "llama", **SIZES, **FAMILIES["llama"])
    engine = engine_of(folder, 4 // tp, tp, slots=96 * tp)
    await outlive(engine, folder, scaled(100) // tp, random.Random(seed()), monkeypatch)


async def test_what_groups_cannot_compute_is_refused(tmp_path):
    folder = tiny_folder(tmp_path, "mistral")
    with pytest.raises(Unsupported, match="windows"):
        engine_of(folder, 2)
    mixed = open_engine(ServeConfig(str(folder), kv_tokens=256, fleet=replace(FLEET, instances=2)))
    with pytest.raises(Unsupported, match="windows"):
        mixed.reassign(0, Role.ELASTIC)
