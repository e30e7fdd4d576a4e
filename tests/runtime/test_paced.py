"""Paced fleets: real tokens, no answer before its stated time, one lane per instance."""

import asyncio
import os
import signal
from dataclasses import dataclass, replace

import pytest

from plait.serving.manager import ManagerConfig
from plait.spec.cluster import Instance, Link, Placement
from plait.spec.event import Moved, StepDone
from plait.spec.move import Move
from plait.spec.step import Step
from tests.runtime.test_engine import GREEDY, answers, engine_of

pytestmark = pytest.mark.usefixtures("quick_workers")

STEP_NS = 20_000_000
TICK_NS = 1_000_000
"""Timers of the event loop are this coarse."""


@pytest.fixture(scope="module")
def unpaced(tiny_llama):
    """What is answered in no stated time."""

    async def asked():
        async with engine_of(tiny_llama) as engine:
            return await answers(engine, 8)

    return asyncio.run(asked())


class Constant:
    """Every step takes the same time."""

    def step_ns(self, step: Step) -> int:
        return STEP_NS


async def test_answers_keep_to_the_cost_model(tiny_llama, unpaced):
    due_ns, free_ns = {}, {}

    def look(now_ns, event, commands):
        if isinstance(event, StepDone):
            assert now_ns >= due_ns.pop(event.step) - TICK_NS, "answered too early"
        for command in commands:
            if isinstance(command, Step):
                (lane,) = command.group
                due_ns[command.id] = free_ns[lane] = max(now_ns, free_ns.get(lane, 0)) + STEP_NS

    async with engine_of(tiny_llama, instances=2, pace=Constant()) as engine:
        engine.driver.observers.append(look)
        assert await answers(engine, 4) == unpaced[:4]
        assert len(free_ns) == 2


@dataclass(frozen=True)
class TwoStages:
    """A step passes two stages of half the time each."""

    def stages_ns(self, step: Step) -> tuple[int, ...]:
        return STEP_NS // 2, STEP_NS // 2

    def step_ns(self, step: Step) -> int:
        return STEP_NS


async def test_stages_work_on_several_steps_at_once(tiny_llama, unpaced):
    """As in a simulation: the second step of two enters the first stage when the first step has left it."""
    due_ns, free_ns, drawn_ns, overlapping = {}, [0, 0], {}, []

    def look(now_ns, event, commands):
        if isinstance(event, StepDone):
            assert now_ns >= due_ns.pop(event.step) - TICK_NS, "answered too early"
        for step in commands:
            if isinstance(step, Step):
                taking = [*step.again, *(row.request for row in step.rows if not row.given)]
                at_ns = max([now_ns, free_ns[0], *(drawn_ns.get(each, 0) for each in taking)])
                free_ns[0] = at_ns + STEP_NS // 2
                overlapping.append(free_ns[0] < free_ns[1] + STEP_NS // 2)
                free_ns[1] = due_ns[step.id] = max(free_ns) + STEP_NS // 2
                everybody = [*step.again, *(row.request for row in step.rows)]
                drawn_ns.update(dict.fromkeys(everybody, free_ns[1]))

    manager = ManagerConfig(placement=Placement((Instance(0, pp=2),)))
    async with engine_of(tiny_llama, manager=manager, pace=TwoStages()) as engine:
        engine.driver.observers.append(look)
        assert await answers(engine, 8) == unpaced
    assert sum(overlapping) > len(overlapping) / 2, "hardly two steps were in the stages at once"


async def test_moves_keep_to_the_network(tiny_llama, unpaced):
    bandwidth, token_bytes = 200_000.0, 2 * 2 * 2 * 16 * 4
    due_ns, ended = {}, []

    def look(now_ns, event, commands):
        if isinstance(event, Moved):
            assert now_ns >= due_ns.pop(event.move) - TICK_NS, "answered too early"
            ended.append(event.move)
        for command in commands:
            if isinstance(command, Move):
                due_ns[command.id] = now_ns + int(command.count * token_bytes / bandwidth * 1e9)

    manager = ManagerConfig(placement=Placement.disaggregated(1, 2))
    settings = {"manager": manager, "pace": Constant(), "pace_link": Link(bandwidth)}
    async with engine_of(tiny_llama, instances=3, **settings) as engine:
        engine.driver.observers.append(look)
        assert await answers(engine, 6) == unpaced[:6]
        assert len(ended) == 6


async def test_a_target_lost_on_the_way_is_not_waited_for(tiny_llama, unpaced):
    manager = ManagerConfig(placement=Placement.disaggregated(1, 2))
    settings = {"manager": manager, "pace": Constant(), "pace_link": Link(50_000.0)}
    async with engine_of(tiny_llama, instances=3, **settings) as engine:
        killed = []

        def kill(now_ns, event, commands):
            for command in commands:
                if isinstance(command, Move) and not killed:
                    killed.append(command)
                    os.kill(engine.fleet.inner.members[command.target.instance].parts[0].pid, signal.SIGKILL)

        engine.driver.observers.append(kill)
        assert await answers(engine, 4) == unpaced[:4]
        assert killed


async def test_a_lost_worker_takes_its_held_answers_with_it(tiny_llama):
    long = replace(GREEDY, max_tokens=40)
    async with engine_of(tiny_llama, instances=2) as engine:
        expected = await answers(engine, 4, long)
    async with engine_of(tiny_llama, instances=2, pace=Constant()) as engine:

        def kill(now_ns, event, commands):
            if isinstance(event, StepDone) and event.step == 6:
                os.kill(engine.fleet.inner.members[0].parts[0].pid, signal.SIGKILL)

        engine.driver.observers.append(kill)
        assert await answers(engine, 4, long) == expected
        assert engine.core.counts.recomputations > 0
