"""Pipeline stages in virtual time: steps follow each other as stages fall free, and never overtake."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from plait.sim.stages import StagedWorkers
from plait.spec.event import StepDone
from plait.spec.step import Row, Step


@dataclass(frozen=True)
class ByTokens:
    """Two stages: 1 and 2 ns a token."""

    def stages_ns(self, step: Step) -> tuple[int, ...]:
        return step.new_tokens, 2 * step.new_tokens

    def step_ns(self, step: Step) -> int:
        return sum(self.stages_ns(step))


def step(number: int, tokens: int) -> Step:
    return Step(number, (0,), (Row(number, 0, tokens, draws=True),))


def test_a_second_step_starts_when_the_first_stage_is_free():
    workers = StagedWorkers(ByTokens(), [])
    assert workers.step_end_ns(step(0, 10), 0) == 30
    assert workers.step_end_ns(step(1, 10), 0) == 50  # first stage until 20, second free at 30
    assert workers.step_end_ns(step(2, 10), 100) == 130
    assert workers.answer(step(0, 10)) == StepDone(0, (1,))
    workers.lost(0, 101)
    assert workers.answer(step(1, 10)) is None
    assert workers.step_end_ns(step(3, 10), 102) == 132


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 30)), min_size=1, max_size=20))
def test_ends_are_in_order_and_never_sooner_than_the_work(jobs):
    workers, now, last = StagedWorkers(ByTokens(), []), 0, 0
    for number, (gap, tokens) in enumerate(jobs):
        now += gap
        end = workers.step_end_ns(step(number, tokens), now)
        assert end >= max(now + 3 * tokens, last + 2 * tokens)
        last = end
