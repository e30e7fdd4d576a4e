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
    issued, lanes = {}, {}

    def look(now_ns, event, commands):
        if isinstance(event, StepDone):
            instance, at_ns = issued.pop(event.step)
            assert now_ns - at_ns >= STEP_NS - TICK_NS, "answered too early"
            free_ns = lanes.get(instance)
            assert free_ns is None or now_ns - free_ns >= STEP_NS - 2 * TICK_NS, (
                "two steps on one lane at once"
            )
            lanes[instance] = now_ns
        for command in commands:
            if isinstance(command, Step):
                issued[command.id] = command.group[0], now_ns

    async with engine_of(tiny_llama, instances=2, pace=Constant()) as engine:
        engine.driver.observers.append(look)
        assert await answers(engine, 4) == expected
        assert len(lanes) == 2


async def test_a_lost_worker_takes_its_held_answers_with_it(tiny_llama):
    long = replace(GREEDY, max_tokens=40)
    async with engine_of(tiny_llama, instances=2) as engine:
        expected = await answers(engine, 4, long)
    async with engine_of(tiny_llama, instances=2, pace=Constant()) as engine:

        def kill(now_ns, event, commands):
            if isinstance(event, StepDone) and event.step == 6:
                engine.fleet._inner.members[0].process._process.kill()

        engine.driver.observers.append(kill)
        assert await answers(engine, 4, long) == expected
        assert engine.core.counts.recomputations > 0
