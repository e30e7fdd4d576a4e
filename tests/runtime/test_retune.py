"""What a retuner makes of the calls of a core: times of steps and readings, and the tail that follows."""

import numpy as np
import pytest

from plait.cost.fitted import Fitted
from plait.cost.reading import StatedReading
from plait.rlhf.core import Tail
from plait.runtime.retune import Retuner
from plait.serving.manager import ManagerConfig
from plait.sim.copies import Network
from plait.sim.rollout import RolloutScenario, SampleLength
from plait.sim.scenario import Scenario
from plait.spec.cluster import Link, Placement

STEPS = Fitted(1e6, 1e4, 0.0, 0.0, 4e6, 50.0, 2e4)
SLOTS = 1 << 16


def world(token_ns):
    scenario = Scenario(
        Placement.colocated(4), STEPS, SLOTS, ManagerConfig(), Network(1 << 16, Link(6e9), Link(6e9))
    )
    return RolloutScenario(scenario, StatedReading(token_ns), 256)


def lengths(seed, median):
    drawn = np.exp(np.random.default_rng(seed).normal(np.log(median), 0.9, 64))
    return [SampleLength(32, int(each)) for each in np.clip(drawn, 1, 256)]


def test_tails_follow_from_what_iterations_took():
    retuner, told = Retuner(4, 0), lengths(0, 40)
    serial = world(150_000).run(told, observers=[retuner.see])
    tuned = retuner.tune(told, SLOTS)
    assert tuned is not None
    assert tuned.tail.left > 0
    assert tuned.serial_ns == pytest.approx(serial.scored_ns, rel=0.15)
    fused = world(150_000).run(told, tuned.tail, [retuner.see])
    assert fused.scored_ns < serial.scored_ns
    again = retuner.tune(lengths(1, 40), SLOTS)
    assert again is not None
    assert again.lengths == 128
    assert again.gain == pytest.approx(tuned.gain, rel=0.1)


def test_an_iteration_without_steps_changes_nothing():
    assert Retuner(4, 0).tune(lengths(0, 40), SLOTS) is None


def test_what_costs_next_to_nothing_to_score_wins_next_to_nothing():
    retuner, told = Retuner(4, 0), lengths(0, 40)
    world(10.0).run(told, Tail(8, 2), [retuner.see])
    tuned = retuner.tune(told, SLOTS)
    assert tuned is not None
    assert tuned.gain < 1.02
