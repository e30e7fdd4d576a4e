"""The monitor tells another workload from chance, once; role changes never leave a phase alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.planner.monitor import Monitor, MonitorConfig
from plait.planner.switch import role_changes
from plait.spec.cluster import Instance, Placement, Role
from plait.spec.command import End
from plait.spec.errors import UserError
from plait.spec.event import Arrived, Stopped
from plait.spec.request import EndReason, Request
from plait.workload import arrivals, lengths

S = 1_000_000_000
CONFIG = MonitorConfig(window_ns=60 * S, least=50, patience_ns=65 * S)


def feed(monitor, begin_s, seconds, rate_hz, prompt, output, seed=0):
    """A Poisson workload; returns the times (s) at which the monitor said that it had shifted."""
    rng = np.random.default_rng(seed)
    count = int(seconds * rate_hz)
    times = arrivals.poisson(rng, rate_hz, count)
    prompts = lengths.lognormal(rng, prompt, 0.8, 10_000, count).tolist()
    outputs = lengths.lognormal(rng, output, 0.8, 10_000, count).tolist()
    said = []
    for number, (at_ns, mine, drawn) in enumerate(zip(times.tolist(), prompts, outputs, strict=True)):
        now_ns, id = begin_s * S + at_ns, begin_s * 1_000_000 + number
        monitor.see(now_ns, Arrived(Request(id, mine, drawn)), [])
        monitor.see(now_ns + 1, Stopped(id, drawn), [End(id, EndReason.LENGTH, drawn)])
        if number % 5 == 0 and monitor.shifted(now_ns + 1):
            said.append((now_ns + 1) / S)
    return said


@pytest.mark.parametrize("seed", range(10))
def test_chance_is_no_shift(seed):
    assert feed(Monitor(CONFIG), 0, 600, 5.0, 300, 100, seed) == []


@pytest.mark.parametrize("changed", [(10.0, 300, 100), (5.0, 700, 100), (5.0, 300, 250), (2.0, 300, 100)])
def test_a_lasting_shift_is_told_until_it_is_accepted(changed):
    monitor = Monitor(CONFIG)
    assert feed(monitor, 0, 200, 5.0, 300, 100) == []
    said = feed(monitor, 200, 300, *changed, seed=1)
    assert 265 <= said[0] <= 330
    monitor.accept(500 * S)
    assert feed(monitor, 500, 200, *changed, seed=2) == []
    assert monitor.rows()[0].arrival_ns == 0


def test_a_short_burst_is_waited_out():
    monitor = Monitor(CONFIG)
    feed(monitor, 0, 200, 5.0, 300, 100)
    assert feed(monitor, 200, 12, 12.0, 300, 100) == []
    assert feed(monitor, 212, 200, 5.0, 300, 100, seed=3) == []


@given(st.lists(st.tuples(st.sampled_from(Role), st.sampled_from(Role)), min_size=1, max_size=6))
def test_role_changes_lead_there_and_leave_no_phase_alone(pairs):
    placements = [Placement(tuple(Instance(i, pair[at]) for i, pair in enumerate(pairs))) for at in (0, 1)]
    roles = [pair[0] for pair in pairs]

    def served(roles):
        return any(role.prefills for role in roles) and any(role.decodes for role in roles)

    if not (served(roles) and served([pair[1] for pair in pairs])):
        return
    for change in role_changes(*placements):
        roles[change.instance] = change.role
        assert served(roles)
    assert roles == [pair[1] for pair in pairs]


def test_other_instances_are_no_role_change():
    with pytest.raises(UserError, match="other instances"):
        role_changes(Placement.colocated(2), Placement.colocated(3))
