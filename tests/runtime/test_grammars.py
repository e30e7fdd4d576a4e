"""Prescribed forms, live: whatever the placement and whatever happens on the way, the same tokens."""

import asyncio
import contextlib
import json
import os
import random
import signal
from dataclasses import replace

import jsonschema
import pytest

from plait.runtime.ask import Ask
from plait.runtime.setup import ServeConfig, open_engine
from plait.serving.admission import AdmissionConfig
from plait.serving.batcher import BatcherConfig
from plait.serving.elasticity import ElasticConfig
from plait.serving.handover import HandoverConfig
from plait.serving.manager import ManagerConfig
from plait.spec.cluster import Instance, Placement, Role
from plait.spec.errors import UserError
from plait.spec.event import Moved, StepDone
from plait.spec.request import EndReason
from plait.spec.sampling import SamplingParams
from plait.spec.step import Step
from plait.text import grammar
from tests.runtime.test_engine import FLEET
from tests.runtime.test_groups import WIDTHS
from tests.runtime.test_parallel import FAMILIES, SIZES, tokens_of
from tests.scale import scaled, seed
from tests.tiny import VOCAB, tiny_folder

pytestmark = pytest.mark.usefixtures("quick_workers")

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "tags": {"type": "array", "maxItems": 3}},
    "required": ["name", "tags"],
    "additionalProperties": False,
}
PERSON["properties"]["tags"]["items"] = {"enum": ["red", "green", "blue"]}
FORMS = (grammar.of_schema(PERSON, "x"), grammar.of_regex("[a-z ]{30,40}[.]", "x"), "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("models"), "llama", **SIZES, **FAMILIES["llama"])


def work(count):
    """A third each obeys a schema, a pattern and nothing; half of them greedy."""
    rng = random.Random(seed())
    prompts = [tuple(rng.randrange(VOCAB) for _ in range(rng.randint(1, 80))) for _ in range(count)]
    return [
        Ask(prompt, SamplingParams(max_tokens=48, temperature=float(i % 2), seed=i, grammar=FORMS[i % 3]))
        for i, prompt in enumerate(prompts)
    ]


@contextlib.asynccontextmanager
async def engine_of(folder, manager, **changes):
    instances = len(manager.placement.instances)
    fleet = replace(FLEET, instances=instances)
    config = ServeConfig(str(folder), exact=True, kv_tokens=4096, manager=manager, fleet=fleet)
    engine = open_engine(replace(config, **changes))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


def settings(*instances, **changes):
    """Small steps, so that prompts are cut and several are in flight."""
    return ManagerConfig(
        placement=Placement(instances), batcher=BatcherConfig(step_tokens=48), **{"page": 16, **changes}
    )


ALONE = settings(Instance(0))
PLACEMENTS = {
    "one step in flight": replace(ALONE, batcher=BatcherConfig(depth=1)),
    "tensor parallel": settings(Instance(0, tp=2)),
    "stages": settings(Instance(0, pp=2)),
    "disaggregated": settings(
        Instance(0, Role.PREFILL), Instance(1, Role.DECODE), handover=HandoverConfig(overlap=True)
    ),
    "elastic": settings(*(Instance(i, Role.ELASTIC) for i in range(3)), elastic=ElasticConfig(widths=WIDTHS)),
}


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_placements_draw_the_same_tokens(folder):
    asked = work(scaled(60) + 12)
    async with engine_of(folder, ALONE) as engine:
        want = await tokens_of(engine, asked)
    for name, manager in PLACEMENTS.items():
        small = {"kv_tokens": 96} if name == "elastic" else {}
        seen = []
        async with engine_of(folder, manager, **small) as engine:
            engine.watch(lambda now, event, commands, seen=seen: seen.extend((event, *commands)))
            assert await tokens_of(engine, asked) == want, name
        if name == "disaggregated":
            assert any(isinstance(each, Moved) for each in seen)
        if name == "elastic":
            assert max(len(each.group) for each in seen if isinstance(each, Step)) > 1


async def test_answers_obey_their_form_and_end(folder):
    """Text as callers see it, and the reason of its end."""
    ended = 0
    async with engine_of(folder, ALONE) as engine:
        for short in work(30)[::3]:
            ask = replace(short, sampling=replace(short.sampling, max_tokens=300))
            pieces = [piece async for piece in engine.submit(ask)]
            if pieces[-1].finish is EndReason.STOP:
                jsonschema.validate(json.loads("".join(piece.text for piece in pieces)), PERSON)
                ended += 1
    assert ended > 3


async def test_preemption_and_lost_workers_change_no_token(folder):
    asked = work(18)
    async with engine_of(folder, ALONE) as engine:
        want = await tokens_of(engine, asked)
    tight = replace(ALONE, admission=AdmissionConfig(output_share=0.05), retries=5)
    async with engine_of(folder, tight, kv_tokens=384) as engine:
        kills = iter([30, 60])
        at, steps = next(kills), 0

        def kill(now, event, commands):
            nonlocal at, steps
            steps += isinstance(event, StepDone)
            if steps == at:
                at = next(kills, -1)
                os.kill(engine.fleet.members[0].pid, signal.SIGKILL)

        engine.watch(kill)
        async with asyncio.timeout(120):
            assert await tokens_of(engine, asked) == want
        assert engine.stats().preemptions
        assert engine.stats().recomputations


async def test_a_form_that_cannot_be_used_is_refused_at_the_door(folder):
    async with engine_of(folder, ALONE) as engine:
        for form, word in (
            (grammar.of_regex("(((", "x"), "unclosed"),
            (grammar.of_schema({"type": "array", "uniqueItems": True}, "x"), "uniqueItems"),
        ):
            with pytest.raises(UserError, match=word):
                engine.submit(Ask((1, 2, 3), SamplingParams(grammar=form)))
        assert not engine.driver.streams


async def test_a_form_that_takes_too_much_on_the_way_ends_its_own_request_alone(folder):
    """Compiled without complaint, it exceeds what one token may take; others draw as if alone."""
    hostile = grammar.of_regex("((((a{100}){100}){100}){100}){100}", "x")
    free, bad = Ask((5, 6, 7), SamplingParams(max_tokens=40, temperature=0)), SamplingParams(grammar=hostile)
    async with engine_of(folder, ALONE) as engine:
        [want] = await tokens_of(engine, [free])
        alone, ended = await asyncio.gather(
            tokens_of(engine, [free]), tokens_of(engine, [Ask((1, 2), bad)]), return_exceptions=True
        )
        assert alone == [want]
        assert isinstance(ended, UserError)
        assert "cannot be kept to" in str(ended)
        assert engine.stats().kv_used_slots == 0
