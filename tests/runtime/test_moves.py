"""Prefill and decode on different instances, live: the tokens of one instance, whatever happens between."""

import asyncio
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from plait.model.hub import resolve
from plait.runtime.ask import Ask
from plait.serving.admission import AdmissionConfig
from plait.serving.batcher import BatcherConfig
from plait.serving.handover import HandoverConfig
from plait.serving.manager import GlobalManager, ManagerConfig
from plait.sim.recorded import Recorded
from plait.sim.world import World
from plait.spec.cluster import Instance, Placement, Role
from plait.spec.command import End
from plait.spec.errors import Unsupported, UserError
from plait.spec.event import Moved, MoveFailed, Reassign, StepDone
from plait.spec.move import Cancel, Move
from plait.spec.request import EndReason
from plait.spec.step import Step
from plait.worker.config import LinkConfig, Way
from plait.workload.journal import read_journal, replay
from tests.runtime.test_engine import FLEET, GREEDY, answers, collect, engine_of, prompt, until
from tests.scale import scaled
from tests.worker.fabrics import lacking

pytestmark = pytest.mark.usefixtures("quick_workers")

LONG = replace(GREEDY, max_tokens=40)
SAMPLED = replace(LONG, temperature=1.0)
MOST = max(40, scaled(500))
"""Requests whose answers are known."""
ONE_AND_ONE = ManagerConfig(placement=Placement.disaggregated(1, 1))
TWO_AND_TWO = ManagerConfig(placement=Placement.disaggregated(2, 2))
SLOW = LinkConfig(part_bytes=2048, bytes_per_s=15_000.0, patience_s=60.0)
"""A prompt of 30 tokens takes a second."""


def placed(manager, **changes):
    """Settings of an engine with the instances of a placement."""
    links = changes.pop("links", LinkConfig())
    instances = len(manager.placement.instances)
    return {"manager": manager, "fleet": replace(FLEET, instances=instances, links=links), **changes}


class Watch:
    """Counts what a core did, and lets a test wait for it."""

    def __init__(self, engine):
        self.engine = engine
        self.moves: dict[int, Move] = {}
        self.answers: dict[int, Moved | MoveFailed] = {}
        self.ends: dict[int, End] = {}
        self.cancels: list[int] = []
        self.steps: dict[int, int] = {}
        """Instance -> steps done."""
        self._groups: dict[int, int] = {}
        engine.driver.observers.append(self._look)

    def _look(self, now_ns, event, commands):
        if isinstance(event, Moved | MoveFailed):
            assert event.move not in self.answers, "a move was answered twice"
            self.answers[event.move] = event
        if isinstance(event, StepDone):
            instance = self._groups[event.step]
            self.steps[instance] = self.steps.get(instance, 0) + 1
        for command in commands:
            if isinstance(command, Move):
                self.moves[command.id] = command
            elif isinstance(command, Cancel):
                self.cancels.append(command.move)
            elif isinstance(command, Step):
                (self._groups[command.id],) = command.group
            elif isinstance(command, End):
                assert command.request not in self.ends, "a request ended twice"
                self.ends[command.request] = command

    @property
    def open(self):
        """Moves without an answer."""
        return [move for id, move in self.moves.items() if id not in self.answers]


@pytest.fixture(scope="module")
def alone(tiny_llama):
    """What a mixed instance alone draws: greedily and by chance."""
    return asyncio.run(one_instance(tiny_llama))


async def one_instance(folder, **changes):
    async with engine_of(folder, **changes) as engine:
        return {each: await answers(engine, MOST, each) for each in (LONG, SAMPLED)}


@pytest.mark.parametrize(("kv_dtype", "way"), [*(("auto", way) for way in Way), ("int8", Way.SHARED)])
async def test_two_prefill_and_two_decode_draw_the_tokens_of_one(tiny_llama, alone, kv_dtype, way):
    if reason := lacking(way):
        pytest.skip(reason)
    if kv_dtype == "int8":
        alone = await one_instance(tiny_llama, kv_dtype=kv_dtype)
    links = LinkConfig(ways=(way,), part_bytes=4096)
    settings = placed(TWO_AND_TWO, links=links, kv_dtype=kv_dtype)
    async with engine_of(tiny_llama, **settings) as engine:
        watch = Watch(engine)
        assert await answers(engine, 12, SAMPLED) == alone[SAMPLED][:12]
        assert {move.source.instance for move in watch.moves.values()} == {0, 1}
        assert {move.target.instance for move in watch.moves.values()} == {2, 3}
        assert all(isinstance(answer, Moved) for answer in watch.answers.values())
        assert len(watch.answers) == 12
        roles = [(each.id, each.role) for each in engine.stats().instances]
        assert roles == [(0, "prefill"), (1, "prefill"), (2, "decode"), (3, "decode")]
        assert await answers(engine, 12, SAMPLED) == alone[SAMPLED][:12], "prefixes that were moved are found"
        assert engine.core.counts.prefix_hits > 0
        await until(engine, lambda: engine.core.quiet)
        assert engine.stats().kv_used_slots == 0


@pytest.mark.parametrize("page", [4, 32])
async def test_pages_of_any_size_are_moved(tiny_llama, alone, page):
    manager = replace(ONE_AND_ONE, page=page)
    async with engine_of(tiny_llama, **placed(manager)) as engine:
        assert await answers(engine, 6, LONG) == alone[LONG][:6]


async def test_moves_may_follow_the_step_that_writes_them(tiny_llama, alone):
    manager = replace(ONE_AND_ONE, handover=HandoverConfig(overlap=True))
    async with engine_of(tiny_llama, **placed(manager)) as engine:
        watch = Watch(engine)
        assert await answers(engine, 12, LONG) == alone[LONG][:12]
        assert any(move.after for move in watch.moves.values())
        assert all(isinstance(answer, Moved) for answer in watch.answers.values())


async def test_greedy_tokens_are_those_of_transformers(tiny_llama):
    prompts = [prompt(n) for n in range(6)]
    async with engine_of(tiny_llama, **placed(ONE_AND_ONE)) as engine:
        drawn = await asked(engine, prompts, replace(GREEDY, max_tokens=24))
    assert [len(each) for each in drawn] == [24] * 6
    assert drawn == largest(tiny_llama, prompts, drawn)


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_the_default_model_is_token_exact_over_two_and_two():
    try:
        folder = resolve("smollm2-135m")
    except UserError as error:
        pytest.skip(f"the default model cannot be had: {error}")
    count, tokens = max(4, scaled(20)), 32
    prompts = [
        tuple((number * 97 + at * at * 31) % 4000 + 100 for at in range(40)) for number in range(count)
    ]
    sampling = replace(GREEDY, max_tokens=tokens)
    async with engine_of(folder) as engine:
        alone = await asked(engine, prompts, sampling)
    async with engine_of(folder, **placed(TWO_AND_TWO)) as engine:
        watch = Watch(engine)
        assert await asked(engine, prompts, sampling) == alone
        assert len(watch.answers) == count
    assert alone == largest(folder, prompts, alone)


async def asked(engine, prompts, sampling):
    """Tokens drawn for each prompt, all at once."""
    streams = [engine.submit(Ask(each, sampling)) for each in prompts]
    return [tokens for _, tokens, _ in await asyncio.gather(*map(collect, streams))]


def largest(folder, prompts, answers):
    """The token with the largest logit after each prefix of an answer, by transformers."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    found = []
    for each, answer in zip(prompts, answers, strict=True):
        with torch.inference_mode():
            logits_TV = model(torch.tensor([[*each, *answer[:-1]]])).logits[0, len(each) - 1 :]
        found.append(logits_TV.argmax(-1).tolist())
    return found


@pytest.mark.parametrize("way", [Way.SHARED, Way.NIXL])
@pytest.mark.parametrize("end", ["source", "target"])
async def test_a_worker_killed_at_either_end_loses_nothing(tiny_llama, alone, end, way):
    if reason := lacking(way):
        pytest.skip(reason)
    async with engine_of(tiny_llama, **placed(TWO_AND_TWO, links=replace(SLOW, ways=(way,)))) as engine:
        watch = Watch(engine)
        streams = [engine.submit(Ask(prompt(n), replace(LONG, seed=n))) for n in range(6)]
        await until(engine, lambda: watch.open)
        move = watch.open[0]
        victim = engine.fleet.members[getattr(move, end).instance]
        epoch = victim.epoch
        await victim.kill()
        await until(engine, lambda: victim.epoch > epoch and victim.up)
        rest = await asyncio.gather(*map(collect, streams))
        assert [tokens for _, tokens, _ in rest] == alone[LONG][:6]
        if end == "source":
            assert isinstance(watch.answers[move.id], MoveFailed)
        else:
            assert move.id not in watch.answers, "nobody answers for a lost target"
        assert len(watch.ends) == 6
        await until(engine, lambda: engine.core.quiet)
        assert engine.stats().kv_used_slots == 0


async def test_an_abort_on_the_way_frees_both_ends(tiny_llama):
    never = replace(SLOW, bytes_per_s=10.0)
    async with engine_of(tiny_llama, **placed(ONE_AND_ONE, links=never)) as engine:
        watch = Watch(engine)
        stream = engine.submit(Ask(prompt(1), LONG))
        await until(engine, lambda: watch.open)
        stream.abort()
        assert (await collect(stream))[2].finish is EndReason.ABORTED
        await until(engine, lambda: engine.core.quiet)
        assert [answer.reason for answer in watch.answers.values()] == ["cancelled"]
        assert watch.cancels == list(watch.answers)
        assert engine.stats().kv_used_slots == 0


async def test_other_requests_decode_on_while_a_slow_move_is_under_way(tiny_llama):
    """The move takes minutes at this rate; steps of its target are counted meanwhile."""
    slow = replace(SLOW, bytes_per_s=100.0)
    manager = ManagerConfig(placement=Placement((Instance(0, Role.PREFILL), Instance(1, Role.MIXED))))
    async with engine_of(tiny_llama, **placed(manager, links=slow)) as engine:
        watch = Watch(engine)
        await until(engine, lambda: all(each.state == "up" for each in engine.stats().instances))
        # All at once, so that each instance gets some; those of the first have to be moved.
        streams = [engine.submit(Ask(prompt(n), replace(LONG, max_tokens=200))) for n in range(6)]
        await until(engine, lambda: watch.open)
        before = watch.steps.get(1, 0)
        await until(engine, lambda: watch.steps.get(1, 0) >= before + 100)
        assert watch.open, "the move is still under way"
        assert not watch.answers, [(watch.moves[move], watch.steps) for move in watch.answers]
        for stream in streams:
            stream.abort()
            await collect(stream)


LETTERS = {"m": Role.MIXED, "p": Role.PREFILL, "d": Role.DECODE}
SCRIPT = [("pddd", "pdpd", "ppdd", "mddp", "dmpp", "dpdp", "pppd", "pdmm")[at % 8] for at in range(20)]


@pytest.mark.timeout(900)
async def test_requests_in_flight_over_twenty_role_changes(tiny_llama, alone):
    """500 requests (scaled down by default), all at once; roles change as they go."""
    count = MOST
    manager = ManagerConfig(placement=Placement.disaggregated(2, 2), admission=AdmissionConfig(max_rows=24))
    async with engine_of(tiny_llama, **placed(manager)) as engine:
        watch = Watch(engine)
        streams = [engine.submit(Ask(prompt(n), replace(SAMPLED, seed=n))) for n in range(count)]
        everything = asyncio.gather(*map(collect, streams))
        for at, roles in enumerate(SCRIPT):
            ended = count * at // (len(SCRIPT) + 1)
            await until(engine, lambda ended=ended: len(watch.ends) >= ended)
            for instance, letter in enumerate(roles):
                engine.driver.post(Reassign(instance, LETTERS[letter]))
            assert [each.role[0] for each in engine.stats().instances] == list(roles)
        assert [tokens for _, tokens, _ in await everything] == alone[SAMPLED]
        assert sorted(watch.ends) == [stream.id for stream in streams]
        assert watch.moves
        assert engine.core.counts.recomputations == 0
        await until(engine, lambda: engine.core.quiet)
        assert engine.stats().kv_used_slots == 0


async def test_a_journal_with_moves_replays_and_simulates(tiny_llama, tmp_path):
    path = tmp_path / "journal.jsonl"
    manager = replace(TWO_AND_TWO, batcher=BatcherConfig(step_tokens=40))
    async with engine_of(tiny_llama, journal=path, **placed(manager)) as engine:
        streams = [engine.submit(Ask(prompt(n), LONG)) for n in range(20)]
        await until(engine, lambda: engine.core.handover.flying)
        streams[3].abort()
        await engine.fleet.members[3].kill()
        await asyncio.gather(*map(collect, streams))
        await until(engine, lambda: engine.core.quiet)
    entries = read_journal(path).entries
    assert sum(isinstance(entry.event, Moved) for entry in entries) >= 15
    difference = replay(GlobalManager(manager), entries)
    assert difference is None, str(difference)
    recorded, road = Recorded(entries), []
    World(
        GlobalManager(manager),
        recorded,
        [lambda now, event, commands: road.append((now, event, tuple(commands)))],
    ).run(recorded.inputs)
    for number, (live, simulated) in enumerate(zip(entries, road, strict=True)):
        assert (live.now_ns, live.event, live.commands) == simulated, f"entry {number} differs"


@pytest.mark.parametrize(
    ("placement", "words"),
    [
        (Placement.disaggregated(2, 0), "one that decodes"),
        (Placement((Instance(5),)), "instance 5 of 1"),
        (Placement((Instance(0, Role.ELASTIC, pp=2),)), "have no stages"),
    ],
)
async def test_placements_that_cannot_serve_are_refused(tiny_llama, placement, words):
    manager = ManagerConfig(placement=placement)
    with pytest.raises(UserError, match=words):
        async with engine_of(tiny_llama, **placed(manager)):
            pass


async def test_an_instance_that_the_model_cannot_be_divided_for_is_refused_by_name(tiny_llama):
    for second, words in (
        (Instance(1, tp=3), "1: tp is 3.*tp can be 1, 2, 4"),
        (Instance(1, pp=3), "1: 2 lay"),
    ):
        manager = ManagerConfig(placement=Placement((Instance(0), second)))
        with pytest.raises(Unsupported, match=f"instance {words}"):
            async with engine_of(tiny_llama, **placed(manager)):
                pass


async def test_roles_can_be_changed_but_not_all_of_a_phase(tiny_llama):
    async with engine_of(tiny_llama, **placed(ONE_AND_ONE)) as engine:
        with pytest.raises(UserError, match="needs an instance that prefills and one that decodes"):
            engine.reassign(1, Role.PREFILL)
        with pytest.raises(UserError, match="as elastic-prefill the engine needs an"):
            engine.reassign(1, Role.ELASTIC_PREFILL)
        with pytest.raises(UserError, match="no instance 2"):
            engine.reassign(2, Role.MIXED)
        engine.reassign(0, Role.MIXED)
        engine.reassign(1, Role.PREFILL)
        assert [each.role for each in engine.stats().instances] == ["mixed", "prefill"]
