"""Pipeline stages in virtual time: steps follow each other as stages fall free, and never overtake."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.serving.admission import AdmissionConfig
from plait.serving.batcher import BatcherConfig
from plait.serving.manager import ManagerConfig
from plait.sim.scenario import Scenario
from plait.sim.workers import Arrival, VirtualWorkers
from plait.spec.cluster import Instance, Placement
from plait.spec.event import StepDone
from plait.spec.request import Request
from plait.spec.step import Row, Step
from plait.workload.trace import TraceRow


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
    workers = VirtualWorkers(ByTokens(), [])
    assert workers.step_end_ns(step(0, 10), 0) == 30
    assert workers.step_end_ns(step(1, 10), 0) == 50  # first stage until 20, second free at 30
    assert workers.step_end_ns(step(2, 10), 100) == 130
    assert workers.answer(step(0, 10)) == StepDone(0, (1,))
    workers.lost(0, 101)
    assert workers.answer(step(1, 10)) is None
    assert workers.step_end_ns(step(3, 10), 102) == 132


@dataclass(frozen=True)
class ByContext:
    """A nanosecond for each token that is attended to."""

    def step_ns(self, step: Step) -> int:
        return step.context_tokens


def test_a_step_of_several_rounds_takes_them_all_and_ends_rows_where_their_traces_say():
    asks = [Arrival(0, Request(i, 10, 50), output) for i, output in enumerate((3, 9, 50))]
    workers = VirtualWorkers(ByContext(), asks)
    first = Step(1, (0,), tuple(Row(i, 0, 10, draws=True) for i in range(3)))
    end_ns = workers.step_end_ns(first, 0)
    assert workers.answer(first) == StepDone(1, (1, 1, 1))
    row = Row(0, 10, 1, given=False, draws=True)
    step = Step(2, (0,), (row,), (1, 2), context_tokens=22, repeat=5)
    assert workers.step_end_ns(step, end_ns) == end_ns + 5 * (33 + 3 * 2)  # 33 at first, 3 more each round
    assert workers.answer(step) == StepDone(2, (2, 5, 5), (0,))
    after = Step(3, (0,), (), (0, 1, 2), context_tokens=48, repeat=3)
    workers.step_end_ns(after, 1000)
    done = workers.answer(after)
    assert done is not None
    assert (done.tokens[1:], done.stopped) == ((3, 3), (1,)), "the first is over, whatever is said of it"


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 30)), min_size=1, max_size=20))
def test_ends_are_in_order_and_never_sooner_than_the_work(jobs):
    workers, now, last = VirtualWorkers(ByTokens(), []), 0, 0
    for number, (gap, tokens) in enumerate(jobs):
        now += gap
        end = workers.step_end_ns(step(number, tokens), now)
        assert end >= max(now + 3 * tokens, last + 2 * tokens)
        last = end


@dataclass(frozen=True)
class Even:
    """Stages of a microsecond each, whatever is in a step."""

    stages: int

    def stages_ns(self, step: Step) -> tuple[int, ...]:
        return (1000,) * self.stages

    def step_ns(self, step: Step) -> int:
        return 1000 * self.stages


@pytest.mark.parametrize("gap_ns", [0, 150, 3300])
@pytest.mark.parametrize("pp", [2, 4])
def test_rows_that_decode_keep_all_stages_busy(pp, gap_ns):
    """A row has a token each time that the stages were passed, and as many steps run as there are stages."""
    config = ManagerConfig(batcher=BatcherConfig(depth=pp + 1))
    scenario = Scenario(Placement((Instance(0, pp=pp),)), Even(pp), 4096, config)
    steps, ended = [], []

    def see(now, event, commands):
        ended.append(now)
        steps.extend(command for command in commands if isinstance(command, Step))

    scenario.run([TraceRow(i * gap_ns, 16, 100) for i in range(8)], [see])
    alone_ns = 7 * gap_ns + 100 * 1000 * pp
    assert ended[-1] <= 1.1 * alone_ns
    assert len(steps) * 1000 * pp >= 0.85 * pp * (ended[-1] - 7 * gap_ns)


@dataclass(frozen=True)
class Affine:
    """Two stages, whose time has a part that no row pays for alone."""

    def stages_ns(self, step: Step) -> tuple[int, ...]:
        return (10_000 + 100 * (len(step.rows) + len(step.again)),) * 2

    def step_ns(self, step: Step) -> int:
        return sum(self.stages_ns(step))


def test_newcomers_join_the_rows_whose_turn_it_is():
    """One step more than there are stages is planned ahead; rows are not cut into as many shares."""
    trace = [TraceRow(i * 3_000, 16, 40) for i in range(600)]
    ends_ns, steps = [], []
    for depth in (2, 3):
        scenario = Scenario(
            Placement((Instance(0, pp=2),)),
            Affine(),
            65_536,
            ManagerConfig(batcher=BatcherConfig(depth=depth), admission=AdmissionConfig(max_rows=512)),
        )
        seen = []
        scenario.run(trace, [lambda now, event, commands, seen=seen: seen.append((now, commands))])
        ends_ns.append(seen[-1][0])
        steps.append(sum(isinstance(command, Step) for _, commands in seen for command in commands))
    assert ends_ns[1] <= 1.03 * ends_ns[0]
    assert steps[1] <= 1.05 * steps[0]
