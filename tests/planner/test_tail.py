"""The tuner of a tail: its forecasts against the core in virtual time, and what it makes of lengths."""

import numpy as np
import pytest

from plait.cost.fitted import Fitted
from plait.cost.reading import StatedReading
from plait.planner.tail import TailModel, TailTuner, fitted_steps
from plait.rlhf.core import SERIAL, Tail
from plait.serving.manager import ManagerConfig
from plait.sim.copies import Network
from plait.sim.rollout import RolloutScenario, SampleLength
from plait.sim.scenario import Scenario
from plait.spec.cluster import Link, Placement

INSTANCES, SAMPLES, LONGEST = 4, 64, 256
STEPS = Fitted(1e6, 1e4, 0.0, 0.0, 4e6, 50.0, 2e4)
SLOTS = 1 << 16


def lengths(seed, median=40.0, sigma=0.9):
    drawn = np.exp(np.random.default_rng(seed).normal(np.log(median), sigma, SAMPLES))
    return [SampleLength(32, int(each)) for each in np.clip(drawn, 1, LONGEST)]


def reading(token_ns):
    return StatedReading(token_ns, 0.2e6, 10e6, (0.5, 0.5))


def model(token_ns):
    return TailModel(INSTANCES, STEPS, reading(token_ns), SLOTS, 1.0)


def core(token_ns):
    network = Network(1 << 16, Link(60e9), Link(60e9))
    scenario = Scenario(Placement.colocated(INSTANCES), STEPS, SLOTS, ManagerConfig(), network)
    return RolloutScenario(scenario, reading(token_ns), LONGEST, readers=2)


@pytest.mark.parametrize("tail", [SERIAL, Tail(6, 1), Tail(12, 2), Tail(24, 3), Tail(60, 4)])
def test_a_forecast_is_near_what_the_core_takes(tail):
    for seed in range(3):
        (foreseen_ns,) = model(60_000).forecast_ns(lengths(seed), [tail])
        assert foreseen_ns == pytest.approx(core(60_000).run(lengths(seed), tail).scored_ns, rel=0.06)


def test_what_it_chooses_is_faster_in_the_core():
    tuned = TailTuner(model(150_000)).tune(lengths(7), SAMPLES, np.random.default_rng(0))
    world = core(150_000)
    serial_ns, fused_ns = (
        sum(world.run(lengths(seed), tail).scored_ns for seed in range(3)) for tail in (SERIAL, tuned.tail)
    )
    assert tuned.gain > 1.1
    assert serial_ns / fused_ns == pytest.approx(tuned.gain, rel=0.1)


def test_equal_lengths_gain_nothing_and_free_scoring_wins_nothing():
    same = [SampleLength(32, 40)] * SAMPLES
    assert TailTuner(model(60_000)).tune(same, SAMPLES, np.random.default_rng(0)).gain < 1.02
    assert TailTuner(model(0.01)).tune(lengths(1), SAMPLES, np.random.default_rng(0)).gain < 1.02


def test_a_longer_inference_stage_is_begun_no_later():
    lefts = []
    for token_ns in (5_000, 40_000, 160_000):
        few = TailModel(INSTANCES, STEPS, reading(token_ns), SLOTS, 1.0)
        tails = [Tail(left, 2) for left in (4, 8, 16, 32, 48)]
        means = np.mean([few.forecast_ns(lengths(seed), tails) for seed in range(8)], axis=0)
        lefts.append(tails[int(np.argmin(means))].left)
    assert lefts == sorted(lefts)


def test_a_tail_that_does_not_fit_is_never_chosen():
    small = TailModel(INSTANCES, STEPS, reading(60_000), 5_000, 1.0)
    assert small.forecast_ns(lengths(0), [Tail(60, 1)]) == [float("inf")]
    tuned = TailTuner(small).tune(lengths(0), SAMPLES, np.random.default_rng(0))
    assert np.isfinite(tuned.ns)


def test_steps_that_cost_nothing_but_context_are_no_trouble():
    odd = TailModel(INSTANCES, Fitted(0.0, 1e4, 0.0, 0.0, 0.0, 5e3, 0.0), reading(60_000), SLOTS, 1.0)
    tuned = TailTuner(odd).tune(lengths(0), SAMPLES, np.random.default_rng(0))
    assert 0 < tuned.ns <= tuned.serial_ns


def test_coefficients_of_a_cost_give_back_its_steps():
    found = fitted_steps(STEPS, 32, 60, 16)
    assert found.decode_ns == pytest.approx(STEPS.decode_ns, rel=1e-3)
    assert found.decode_row_ns == pytest.approx(STEPS.decode_row_ns, rel=0.05)
    assert found.decode_context_ns == pytest.approx(STEPS.decode_context_ns, rel=0.05)
