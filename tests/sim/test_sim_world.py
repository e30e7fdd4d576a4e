"""The virtual world against queueing theory, a second implementation, and its own recordings."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.sim.recorded import Recorded
from plait.sim.workers import Arrival, VirtualWorkers, run
from plait.sim.world import World
from plait.spec.command import End, Token, Wake
from plait.spec.event import Aborted, Arrived, Drain, StepDone, Woken, WorkerLost, WorkerUp
from plait.spec.request import EndReason, Request
from plait.spec.step import Row, Step
from plait.workload.journal import Entry, replay
from tests.sim.cores import Queue, Small, Ticker

MS = 1_000_000


@dataclass(frozen=True)
class Constant:
    """Every step takes the same time."""

    ns: int

    def step_ns(self, step: Step) -> int:
        return self.ns


class Linear:
    """A little time for each token and each token of context."""

    def step_ns(self, step: Step) -> int:
        return 2 * MS + 1000 * step.new_tokens + 10 * step.context_tokens


def simulate(core, arrivals, cost, events=()):
    entries: list[Entry] = []
    run(core, arrivals, cost, events=events, observers=[lambda *call: entries.append(Entry(*_frozen(call)))])
    return entries


def _frozen(call):
    now_ns, event, commands = call
    return now_ns, event, tuple(commands)


def poisson(rate_hz: float, count: int, seed: int) -> list[int]:
    gaps = np.random.default_rng(seed).exponential(1e9 / rate_hz, count)
    return [int(at) for at in np.cumsum(gaps)]


def test_mean_wait_is_that_of_an_m_d_1_queue():
    """Pollaczek-Khinchine: rho * service / (2 * (1 - rho)); and each wait is Lindley's recursion."""
    service_ns, rho, count = 10 * MS, 0.6, 200_000
    times = poisson(rho * 1e9 / service_ns, count, seed=4)
    arrivals = [Arrival(at, Request(i, 1, 1), 1) for i, at in enumerate(times)]
    started: list[int] = []

    def note(now_ns, event, commands):
        started.extend(now_ns for command in commands if isinstance(command, Step))

    run(Queue(), arrivals, Constant(service_ns), observers=[note])
    waits = [start - at for start, at in zip(started, times, strict=True)]
    expected = rho * service_ns / (2 * (1 - rho))
    assert np.mean(waits) == pytest.approx(expected, rel=0.02)
    free_ns = 0
    for at, start in zip(times, started, strict=True):
        assert abs(start - max(at, free_ns)) <= 2  # time rises by a nanosecond where events meet
        free_ns = start + service_ns


def _workload(seed: int, count: int = 200) -> list[Arrival]:
    rng = np.random.default_rng(seed)
    prompts, outputs = rng.integers(1, 400, count), rng.integers(1, 30, count)
    return [
        Arrival(at, Request(i, int(prompts[i]), 20), int(outputs[i]))
        for i, at in enumerate(poisson(100, count, seed))
    ]


UP = [(0, WorkerUp(i, 0, 10_000)) for i in range(2)]


@pytest.mark.parametrize("described", [False, True])
def test_each_request_ends_where_its_trace_says(described):
    arrivals = _workload(1)
    ends = {
        command.request: command
        for entry in simulate(Small(described), arrivals, Linear(), UP)
        for command in entry.commands
        if isinstance(command, End)
    }
    assert len(ends) == len(arrivals)
    for arrival in arrivals:
        short = arrival.output_tokens < 20
        end = ends[arrival.request.id]
        assert end.tokens == min(arrival.output_tokens, 20)
        assert end.reason == (EndReason.STOP if short else EndReason.LENGTH)


def test_the_same_run_twice_is_the_same():
    faults = [*UP, (700 * MS, WorkerLost(1, 0)), (900 * MS, Aborted(80)), (1000 * MS, WorkerUp(1, 1, 10_000))]
    first, second = (simulate(Small(), _workload(2), Linear(), faults) for _ in range(2))
    assert first == second
    assert replay(Small(), first) is None
    times = [entry.now_ns for entry in first]
    assert times == sorted(set(times))


def test_littles_law():
    """Requests in the system, averaged over time, are arrivals a second times their time in it."""
    arrivals = _workload(3, count=2000)
    entries = simulate(Small(), arrivals, Linear(), UP)
    ended = {c.request: e.now_ns for e in entries for c in e.commands if isinstance(c, End)}
    stays = [ended[a.request.id] - a.at_ns for a in arrivals]
    span = entries[-1].now_ns
    area = inside = last = 0
    for entry in entries:
        area += inside * (entry.now_ns - last)
        last = entry.now_ns
        inside += isinstance(entry.event, Arrived) - sum(isinstance(c, End) for c in entry.commands)
    assert area / span == pytest.approx(len(arrivals) / span * np.mean(stays), rel=0.001)


def test_lost_steps_are_never_answered_and_their_requests_still_end():
    arrivals = _workload(5)
    faults = [*UP, (600 * MS, WorkerLost(0, 0)), (601 * MS, WorkerUp(0, 1, 10_000))]
    faults.append((800 * MS, WorkerLost(1, 0)))
    entries = simulate(Small(), arrivals, Linear(), faults)
    issued = {c.id for e in entries for c in e.commands if isinstance(c, Step)}
    answered = [e.event.step for e in entries if isinstance(e.event, StepDone)]
    assert len(answered) == len(set(answered)) == len(issued) - 2
    ends = [c for e in entries for c in e.commands if isinstance(c, End)]
    assert sorted(c.request for c in ends) == list(range(len(arrivals)))
    assert all(c.tokens == min(arrivals[c.request].output_tokens, 20) for c in ends)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 99),
    faults=st.lists(st.tuples(st.integers(0, 900), st.integers(0, 60)), max_size=8),
    loss=st.booleans(),
)
def test_a_recording_walks_the_same_road(seed, faults, loss):
    """Fed with a run's own durations and answers, the world makes the same decisions event for event."""
    events = [*UP, *((at * MS, Aborted(request)) for at, request in faults), (950 * MS, Drain())]
    if loss:
        events += [(300 * MS, WorkerLost(1, 0)), (400 * MS, WorkerUp(1, 1, 10_000))]
    live = simulate(Small(), _workload(seed, count=60), Linear(), events)
    recorded = Recorded(live)
    again: list[Entry] = []
    World(Small(), recorded, [lambda *call: again.append(Entry(*_frozen(call)))]).run(recorded.inputs)
    assert again == live


def test_a_recording_answers_alarms_as_late_as_they_rang():
    live = [
        Entry(5, Drain(), tuple(Ticker(9).handle(Drain(), 5))),
        Entry(19, Woken(15), tuple(Ticker(9).handle(Drain(), 19))),
    ]
    recorded, seen = Recorded(live), []
    World(Ticker(9), recorded, [lambda *call: seen.append(call[:2])]).run(recorded.inputs)
    assert seen == [(5, Drain()), (19, Woken(15))]


def test_lanes_queue_steps_and_a_group_waits_for_all_its_members():
    workers = VirtualWorkers(Constant(10), [])

    def step(number: int, *group: int) -> Step:
        return Step(number, group, ())

    assert workers.step_end_ns(step(1, 0), 0) == 10
    assert workers.step_end_ns(step(2, 0), 3) == 20
    assert workers.step_end_ns(step(3, 1), 3) == 13
    assert workers.step_end_ns(step(4, 0, 1), 5) == 30
    assert workers.step_end_ns(step(5, 1), 6) == 40
    workers.lost(0, 12)
    assert [workers.answer(step(n, 0)) is None for n in (1, 2, 4)] == [True] * 3
    assert workers.answer(step(3, 1)) == StepDone(3, ())
    assert workers.step_end_ns(step(6, 0), 15) == 25


def test_a_row_that_is_opened_anew_elsewhere_goes_on_where_it_was():
    request = Request(7, prompt_tokens=4, max_tokens=9)
    workers = VirtualWorkers(Constant(10), [Arrival(0, request, 3)])

    def answer(step):
        workers.step_end_ns(step, 0)
        return workers.answer(step)

    assert answer(Step(1, (0,), (Row(7, 0, 3),))) == StepDone(1, (0,))
    assert answer(Step(2, (0,), (Row(7, 3, 1, draws=True),))) == StepDone(2, (1,))
    assert answer(Step(3, (0,), (), again=(7,))) == StepDone(3, (1,))
    assert answer(Step(4, (1,), (Row(7, 0, 6, draws=True),), closed=(7,))) == StepDone(4, (1,), (0,))


def test_ties_go_to_inputs_then_answers_then_alarms_in_the_order_they_were_made():
    class Probe:
        def __init__(self):
            self.seen = []

        def handle(self, event, now_ns):
            self.seen.append((now_ns, type(event).__name__))
            if isinstance(event, WorkerUp):
                return [Wake(10), Step(1, (0,), ())]
            return []

    probe = Probe()
    events = [(0, WorkerUp(0, 0, 1)), (10, Aborted(3)), (10, Drain())]
    assert run(probe, [], Constant(10), events=events) == 5
    assert probe.seen == [(0, "WorkerUp"), (10, "Aborted"), (11, "Drain"), (12, "StepDone"), (13, "Woken")]


def test_until_ends_the_run_before_the_next_event():
    seen = []
    events = [(at, Drain()) for at in (1, 5, 9)]
    observe = [lambda *call: seen.append(call)]
    handled = run(Ticker(0), [], Constant(1), events=events, observers=observe, until_ns=5)
    assert handled == len(seen) == 2


def test_tokens_are_told_once_for_each_draw():
    arrivals = _workload(6, count=50)
    told = Counter(
        request
        for entry in simulate(Small(), arrivals, Linear(), UP)
        for command in entry.commands
        if isinstance(command, Token)
        for request in command.requests
    )
    assert told == {a.request.id: min(a.output_tokens, 20) for a in arrivals}
