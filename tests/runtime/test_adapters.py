"""Adapters under an engine, in every mode: rows of many and of none draw what merged weights draw."""

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import pytest

from plait.runtime.ask import Ask
from plait.runtime.engine import Engine
from plait.runtime.launch import Launcher, Started
from plait.runtime.setup import ServeConfig, open_engine
from plait.serving.batcher import BatcherConfig
from plait.serving.elasticity import ElasticConfig
from plait.serving.manager import GlobalManager, ManagerConfig
from plait.spec.cluster import Instance, Placement, Role
from plait.spec.errors import NotFound, UserError
from plait.spec.event import WorkerLost, WorkerUp
from plait.spec.move import Move
from plait.spec.sampling import SamplingParams
from plait.spec.step import Step
from plait.worker.config import WorkerConfig
from plait.workload.journal import read_journal, replay
from tests.adapters import merged_folder, write_adapter
from tests.runtime.test_engine import prompt, until
from tests.runtime.test_groups import WIDTHS
from tests.runtime.test_parallel import FAMILIES, FLEET, SIZES, asks, check, tokens_of
from tests.tiny import tiny_folder

pytestmark = [pytest.mark.usefixtures("quick_workers"), pytest.mark.timeout(600)]
GREEDY = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)
NAMES = ("", "all", "some")
MODES = {
    "one": ((Role.MIXED, 1, 1),),
    "columns": ((Role.MIXED, 2, 1),),
    "stages": ((Role.MIXED, 2, 2),),
    "apart": ((Role.PREFILL, 2, 1), (Role.DECODE, 1, 1)),
    "groups": ((Role.ELASTIC, 1, 1),) * 3,
    "groups of columns": ((Role.ELASTIC, 2, 1),) * 2,
}


class Folders:
    """A model, two adapters of it, and what they make of it."""

    def __init__(self, root: Path) -> None:
        self.base = tiny_folder(root, "llama", **SIZES, **FAMILIES["llama"])
        self.all = write_adapter(self.base, root / "all", 1)
        self.some = write_adapter(self.base, root / "some", 2, 7, ("q_proj", "v_proj", "down_proj"))
        self.merged = {
            "": self.base,
            "all": merged_folder(self.base, self.all, root / "merged-all"),
            "some": merged_folder(self.base, self.some, root / "merged-some"),
        }

    def check(self, work: list[Ask], got: list[tuple[int, ...]]) -> None:
        """Every token is that of transformers with merged weights, but for near ties."""
        for name, folder in self.merged.items():
            mine = [(ask, row) for ask, row in zip(work, got, strict=True) if ask.adapter == name]
            assert check(folder, [ask for ask, _ in mine], [row for _, row in mine]) <= 1


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return Folders(tmp_path_factory.mktemp("adapters"))


def engine_of(folders: Folders, mode: str = "one", **changes: object) -> Engine:
    """An engine in exact mode that begins with both adapters."""
    placed = [Instance(i, role, tp, pp) for i, (role, tp, pp) in enumerate(MODES[mode])]
    manager = ManagerConfig(
        page=16,
        placement=Placement(tuple(placed)),
        batcher=BatcherConfig(step_tokens=48),
        elastic=ElasticConfig(widths=WIDTHS),
    )
    fleet = replace(FLEET, instances=len(placed))
    both = (("all", folders.all), ("some", folders.some))
    config = {"exact": True, "kv_tokens": 512, "manager": manager, "fleet": fleet, "adapters": both}
    return open_engine(ServeConfig(str(folders.base), **{**config, **changes}))


def mixed(count: int, number: int = 0) -> list[Ask]:
    """Asks of all adapters and of none; each prompt comes with each of them."""
    work = asks(random.Random(number), count)
    return [replace(ask, adapter=name) for ask in work for name in NAMES]


def seen(engine: Engine, kind: type) -> list:
    """Commands and events of a kind, as they come."""
    found: list = []
    engine.watch(
        lambda _, event, commands: found.extend(x for x in (event, *commands) if isinstance(x, kind))
    )
    return found


@pytest.mark.parametrize("mode", MODES)
async def test_rows_draw_what_merged_weights_draw(folders, mode):
    engine, work = engine_of(folders, mode), mixed(5)
    steps, moves = seen(engine, Step), seen(engine, Move)
    await engine.start()
    try:
        folders.check(work, await tokens_of(engine, work))
        assert engine.stats().kv_used_slots == 0
    finally:
        await engine.close()
    assert max(len(step.rows) + len(step.again) for step in steps) > 3
    assert bool(moves) == (mode == "apart")
    assert (max(len(step.group) for step in steps) > 1) == mode.startswith("groups")


@pytest.mark.parametrize("mode", ["columns", "groups"])
async def test_rows_beside_those_that_are_played_from_tapes(folders, mode):
    """Outside of exact mode: some members of a step play, others compute, and columns still sum the same."""
    engine, work = engine_of(folders, mode, exact=False, dtype="float32"), mixed(5)
    await engine.start()
    try:
        folders.check(work, await tokens_of(engine, work))
    finally:
        await engine.close()


async def test_what_others_ask_for_changes_no_bit(folders):
    """In exact mode: log-probabilities of a row among others are those of the row alone."""
    wish = replace(GREEDY, logprobs=2, prompt_logprobs=1)
    work = [Ask(prompt(n), wish, adapter=NAMES[n % 3]) for n in range(7)]
    engine = engine_of(folders)
    await engine.start()

    async def said(ask: Ask) -> list[object]:
        return [
            (p.logprobs, p.prompt_logprobs)
            async for p in engine.submit(ask)
            if p.logprobs or p.prompt_logprobs
        ]

    def flat(pieces: list) -> list:
        return [entry for pair in pieces for part in pair for entry in part]

    try:
        together = await asyncio.gather(*map(said, work))
        for ask, found in zip(work, together, strict=True):
            assert flat(await said(ask)) == flat(found)
    finally:
        await engine.close()


@pytest.mark.parametrize("weights", ["auto", "int8"])
async def test_bf16_and_rounded_weights(folders, weights):
    """Each draws its own, and rows without an adapter what they draw where there are none."""
    work = mixed(4)
    told = {"exact": False, "dtype": "bfloat16", "weights": weights}
    plain, engine = engine_of(folders, adapters=(), **told), engine_of(folders, **told)
    answers = []
    for each, some in ((plain, [ask for ask in work if not ask.adapter]), (engine, work)):
        await each.start()
        try:
            answers.append(await tokens_of(each, some))
        finally:
            await each.close()
    without, got = answers
    drawn = {name: [row for ask, row in zip(work, got, strict=True) if ask.adapter == name] for name in NAMES}
    assert drawn[""] == without
    assert drawn["all"] != drawn[""] != drawn["some"] != drawn["all"]


async def test_no_two_share_a_prefix(folders):
    engine = engine_of(folders)
    await engine.start()
    try:
        for round_ in range(2):
            for name in NAMES:
                stream = engine.submit(Ask(prompt(1, 60), GREEDY, adapter=name))
                async for _ in stream:
                    pass
                assert stream.cached_tokens == 48 * round_
        engine.adapters.unload("some")
        await engine.load_adapter("some", folders.some)
        stream = engine.submit(Ask(prompt(1, 60), GREEDY, adapter="some"))
        async for _ in stream:
            pass
        assert stream.cached_tokens == 0
    finally:
        await engine.close()


async def test_they_come_and_go_while_others_are_answered(folders):
    engine = engine_of(folders, adapters=(("all", folders.all),))
    await engine.start()
    try:
        base = [Ask(prompt(n), replace(GREEDY, max_tokens=60)) for n in range(3)]
        running = asyncio.ensure_future(tokens_of(engine, base))
        card = await engine.load_adapter("some", folders.some)
        assert not running.done()
        work = mixed(2)
        last = asyncio.ensure_future(tokens_of(engine, work))
        await until(engine, lambda: any(each.running for each in engine.stats().adapters[1:]))
        engine.adapters.unload("some")
        assert list(engine.adapters.cards) == ["all"]
        with pytest.raises(NotFound, match="no adapter 'some'"):
            engine.submit(Ask(prompt(1), GREEDY, adapter="some"))
        assert card.number in engine.fleet._adapting.wanted, "rows still come with it"
        folders.check(work, await last)
        assert card.number not in engine.fleet._adapting.wanted
        folders.check(base, await running)
        assert [(each.name, each.running) for each in engine.stats().adapters] == [("all", 0)]
    finally:
        await engine.close()


@pytest.mark.parametrize(("mode", "victim"), [("apart", 0), ("apart", 1), ("groups", 1)])
async def test_rows_of_a_lost_instance_are_computed_anew(folders, mode, victim):
    engine, work = engine_of(folders, mode), mixed(4)
    lost = seen(engine, WorkerLost)
    await engine.start()
    try:
        drawing = asyncio.ensure_future(tokens_of(engine, work))
        await until(engine, lambda: engine.driver.drawn_tokens > 12)
        await engine.kill(victim)
        folders.check(work, await drawing)
        await until(engine, lambda: lost)
    finally:
        await engine.close()


async def test_a_replaced_worker_has_them_before_it_serves(folders, tmp_path):
    """Also one that was loaded while it was away; its rows are computed anew."""
    engine = engine_of(folders, adapters=(("all", folders.all),), journal=tmp_path / "journal.jsonl")
    lost, up = seen(engine, WorkerLost), seen(engine, WorkerUp)
    await engine.start()
    try:
        work = [ask for ask in mixed(4) if ask.adapter != "some"]
        drawing = asyncio.ensure_future(tokens_of(engine, work))
        await until(engine, lambda: engine.driver.drawn_tokens > 6)
        await engine.kill(0)
        await until(engine, lambda: lost)
        await engine.load_adapter("some", folders.some)
        folders.check(work, await drawing)
        assert (len(lost), len(up)) == (1, 2)
        more = mixed(2, 5)
        folders.check(more, await tokens_of(engine, more))
    finally:
        await engine.close()
    history = read_journal(tmp_path / "journal.jsonl")
    arrived = [entry.event.request for entry in history.entries if hasattr(entry.event, "request")]
    assert {request.adapter for request in arrived if hasattr(request, "adapter")} == set(NAMES)
    assert replay(GlobalManager(engine.config.manager), history.entries) is None


class Launches:
    """A launcher that tells when so many workers were started; all but the last one had left by then."""

    def __init__(self, inner: Launcher, count: int) -> None:
        self._inner, self._left, self.reached = inner, count, asyncio.Event()

    async def launch(self, config: WorkerConfig) -> Started:
        self._left -= 1
        if not self._left:
            self.reached.set()
        return await self._inner.launch(config)

    async def close(self) -> None:
        await self._inner.close()


async def test_a_worker_that_cannot_have_one_does_not_serve(folders, tmp_path):
    """Its folder is gone when the worker is replaced. Once it is unloaded, the next start is well."""
    own = write_adapter(folders.base, tmp_path / "own", 3)
    engine = engine_of(folders, adapters=(("own", own),), fleet=replace(FLEET, restarts=50))
    lost = seen(engine, WorkerLost)
    await engine.start()
    try:
        own.rename(tmp_path / "elsewhere")
        launches = engine.fleet._launcher = Launches(engine.fleet._launcher, 2)
        await engine.kill(0)
        await until(engine, lambda: lost)
        await launches.reached.wait()
        assert engine.fleet.members[0].failed_starts == 1
        engine.adapters.unload("own")
        assert await tokens_of(engine, [Ask(prompt(1), GREEDY)])
    finally:
        await engine.close()


async def test_what_cannot_be_loaded_is_refused_and_harms_nobody(folders, tmp_path):
    other = tiny_folder(tmp_path, "llama", num_hidden_layers=9)
    stranger = write_adapter(other, tmp_path / "stranger")
    engine = engine_of(folders)
    await engine.start()
    bad: list[tuple[str, str, Path]] = [
        ("another model", "new", stranger),
        ("is not there", "new", tmp_path),
        ("loaded already", "all", folders.all),
        ("own name", engine.config.name, folders.all),
        ("letters, digits", "a b", folders.all),
        ("letters, digits", "", folders.all),
    ]
    try:
        for words, name, folder in bad:
            with pytest.raises(UserError, match=words):
                await engine.load_adapter(name, folder)
        assert list(engine.adapters.cards) == ["all", "some"]
        work = mixed(1)
        folders.check(work, await tokens_of(engine, work))
        with pytest.raises(UserError, match="unload them first"):
            await engine.load(1, folders.base, {})
        with pytest.raises(NotFound):
            engine.adapters.unload("new")
    finally:
        await engine.close()


async def test_an_engine_does_not_start_with_one_that_it_cannot_have(folders, tmp_path):
    other = tiny_folder(tmp_path, "llama", num_hidden_layers=9)
    stranger = write_adapter(other, tmp_path / "stranger")
    for words, folder in (("another model", stranger), ("is not there", tmp_path)):
        with pytest.raises(UserError, match=words):
            await engine_of(folders, adapters=(("new", folder),)).start()
