"""Paced fleets: real tokens, no answer before its stated time, one lane per instance."""

from dataclasses import replace

from plait.spec.event import StepDone
from plait.spec.step import Step
from tests.runtime.test_engine import GREEDY, answers, engine_of

STEP_NS = 20_000_000
TICK_NS = 1_000_000
"""Timers of the event loop are this coarse."""


class Constant:
    """Every step takes the same time."""

    def step_ns(self, step: Step) -> int:
        return STEP_NS


async def test_answers_keep_to_the_cost_model(tiny_llama):
    async with engine_of(tiny_llama, instances=2) as engine:
        expected = await answers(engine, 4)
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
        assert await answers(engine, 4) == expected
        assert len(free_ns) == 2


async def test_a_lost_worker_takes_its_held_answers_with_it(tiny_llama):
    long = replace(GREEDY, max_tokens=40)
    async with engine_of(tiny_llama, instances=2) as engine:
        expected = await answers(engine, 4, long)
    async with engine_of(tiny_llama, instances=2, pace=Constant()) as engine:

        def kill(now_ns, event, commands):
            if isinstance(event, StepDone) and event.step == 6:
                engine.fleet._inner.members[0].parts[0].process._process.kill()

        engine.driver.observers.append(kill)
        assert await answers(engine, 4, long) == expected
        assert engine.core.counts.recomputations > 0
