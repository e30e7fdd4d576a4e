"""Instances of several processes, live: their tokens are those of one process and of transformers."""

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from plait.kernels.choice import choose
from plait.model.hub import resolve
from plait.runtime.ask import Ask
from plait.runtime.engine import Engine
from plait.runtime.fleet import FleetConfig
from plait.runtime.setup import ServeConfig, open_engine
from plait.serving.batcher import BatcherConfig
from plait.serving.manager import ManagerConfig
from plait.spec.errors import Unsupported, UserError
from plait.spec.event import StepDone, WorkerLost
from plait.spec.sampling import Draw, SamplingParams
from tests.scale import scaled, seed, some
from tests.tiny import VOCAB, tiny_folder
from tests.worker.script import Task
from tests.worker.test_exactness import QUESTIONS, ties_against

pytestmark = pytest.mark.usefixtures("quick_workers")

SIZES = {
    "num_attention_heads": 8,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 5,
}
FAMILIES = {
    "llama": {"num_key_value_heads": 2, "head_dim": 16},
    "qwen3": {"num_key_value_heads": 4, "head_dim": 16},
    "qwen2": {"num_key_value_heads": 1, "head_dim": 16},
    "gpt_neox": {},
}
LAYOUTS = ((1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (1, 4))


FLEET = FleetConfig(pause_ns=1_000_000)


@contextlib.asynccontextmanager
async def engine_of(folder: Path, tp: int, pp: int, **changes) -> AsyncIterator[Engine]:
    """A running engine of one instance in float32, exact."""
    manager = ManagerConfig(page=16, batcher=BatcherConfig(step_tokens=48, prefix_cache=True))
    config = {"exact": True, "kv_tokens": 4096, "manager": manager, "fleet": FLEET, **changes}
    engine = open_engine(ServeConfig(str(folder), tp=tp, pp=pp, **config))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


def asks(rng: random.Random, count: int) -> list[Ask]:
    """Greedy, with prompts of 1 to 80 tokens, longer than a step takes."""
    prompts = [tuple(rng.randrange(VOCAB) for _ in range(rng.randint(1, 80))) for _ in range(count)]
    wishes = (SamplingParams(temperature=0, max_tokens=rng.randint(4, 24), ignore_eos=True) for _ in prompts)
    return [Ask(prompt, wish) for prompt, wish in zip(prompts, wishes, strict=True)]


async def tokens_of(engine: Engine, work: list[Ask]) -> list[tuple[int, ...]]:
    """What every ask draws, all at once."""

    async def one(ask: Ask) -> tuple[int, ...]:
        return tuple([token async for piece in engine.submit(ask) for token in piece.tokens])

    return list(await asyncio.gather(*(one(ask) for ask in work)))


def check(folder: Path, work: list[Ask], got: list[tuple[int, ...]]) -> int:
    """Against transformers: a token may differ at a near tie only. Returns how many do."""
    reference = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa", dtype=torch.float32)
    tasks = [Task(ask.prompt, ask.sampling.max_tokens) for ask in work]
    compared, ties = ties_against(reference, tasks, [[Draw((token,)) for token in row] for row in got])
    assert compared == sum(ask.sampling.max_tokens for ask in work)
    return ties


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("tp", "pp"), some(LAYOUTS, 3))
async def test_layouts_draw_the_tokens_of_transformers(tp, pp, tmp_path):
    """Also with more processes than KV heads, for then neighbours keep the same head."""
    rng = random.Random(seed())
    families = FAMILIES if tp * pp == 1 or scaled(100) == 100 else ("llama", rng.choice(tuple(FAMILIES)))
    ties = 0
    for family in families:
        folder = tiny_folder(tmp_path / f"{family}-{ties}", family, **SIZES, **FAMILIES[family])
        work = asks(rng, scaled(40) + 6)
        async with engine_of(folder, tp, pp) as engine:
            ties += check(folder, work, await tokens_of(engine, work))
    assert ties <= 1


async def test_shared_layers_decode_from_tapes(tmp_path, capfd):
    """Outside of exact mode: sums through shared memory are calls on the tape."""
    if choose().native is None:
        pytest.skip("tapes need native kernels")
    folder = tiny_folder(tmp_path, "llama", **SIZES, **FAMILIES["llama"])
    work = asks(random.Random(3), 6)
    async with engine_of(folder, 2, 1, exact=False, dtype="float32") as engine:
        assert check(folder, work, await tokens_of(engine, work)) <= 1
    said = capfd.readouterr().err
    assert "is a tape of" in said
    assert "without tapes" not in said


async def test_drawn_tokens_are_those_of_one_process(tmp_path):
    folder = tiny_folder(tmp_path, "llama", **SIZES, **FAMILIES["llama"])
    wish = SamplingParams(temperature=0.8, top_p=0.9, repetition_penalty=1.1, max_tokens=16, ignore_eos=True)
    work = [replace(ask, sampling=replace(wish, seed=i)) for i, ask in enumerate(asks(random.Random(1), 6))]
    results = []
    for tp, pp in ((1, 1), (2, 2)):
        async with engine_of(folder, tp, pp) as engine:
            results.append(await tokens_of(engine, work))
    assert results[0] == results[1]


async def test_a_lost_process_takes_its_instance_down_once(tmp_path):
    folder = tiny_folder(tmp_path, "llama", **SIZES, **FAMILIES["llama"])
    work = asks(random.Random(2), 6)
    async with engine_of(folder, 2, 2) as engine:
        expected = await tokens_of(engine, work)
        member = engine.fleet.members[0]
        events = []
        engine.watch(lambda now, event, commands: events.append(event))
        for rank in some(range(4), 1):
            epoch, pids = member.epoch, [part.pid for part in member.parts]
            running = asyncio.gather(*(tokens_of(engine, [ask]) for ask in work))
            await until(engine, lambda: any(isinstance(event, StepDone) for event in events))
            os.kill(pids[rank], signal.SIGKILL)
            assert [row for (row,) in await running] == expected
            assert member.epoch == epoch + 1
            assert not {part.pid for part in member.parts} & set(pids)
            lost = [event for event in events if isinstance(event, WorkerLost)]
            assert lost == [WorkerLost(0, epoch)]
            events.clear()


async def test_what_cannot_be_divided_is_refused(tmp_path):
    folder = tiny_folder(tmp_path, "phi3", **SIZES, **FAMILIES["llama"])
    with pytest.raises(Unsupported, match="plan wants 'rowwise_split_input'"):
        async with engine_of(folder, 2, 1):
            pass


async def until(engine: Engine, holds: Callable[[], bool]) -> None:
    """Wait for a call of the core after which this holds."""
    seen = asyncio.Event()
    engine.watch(lambda *_: seen.set() if holds() else None)
    await seen.wait()


def questions_of_the_default_model() -> tuple[Path, list[Ask]]:
    """Its folder, and greedy asks in its own words; skips where it cannot be had."""
    try:
        folder = resolve("smollm2-135m")
    except UserError as error:
        pytest.skip(f"the default model cannot be had: {error}")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    greedy = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    return folder, [
        Ask(tuple(tokenizer(question).input_ids), greedy) for question in QUESTIONS[: max(4, scaled(20))]
    ]


@pytest.mark.model
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("tp", "pp"), some([(3, 1), (1, 2), (3, 2)], 1))
async def test_the_default_model_is_token_exact(tp, pp):
    folder, work = questions_of_the_default_model()
    async with engine_of(folder, tp, pp) as engine:
        assert check(folder, work, await tokens_of(engine, work)) <= 1
