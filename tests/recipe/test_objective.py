"""The largest budget that holds latencies and a rate, as the planner sees them."""

import json
from pathlib import Path

import pytest

from plait.cli.plan import planning
from plait.cost.catalog import CONFIGS
from plait.recipe.objective import Objective, kept
from plait.spec.errors import UserError
from plait.spec.shape import ModelShape

RECIPES = Path(__file__).parents[2] / "recipes"
SHAPE = ModelShape.from_config(CONFIGS["smollm2-135m"])
GOAL = {
    "cluster": "plan/cpu-2.yaml",
    "trace": "plan/short.csv",
    "slo": "ttft=1s,tpot=18ms",
    "rate": 2,
    "policy": "colocated",
    "finalists": 1,
    "requests": 50,
}


def objective(**changes) -> Objective:
    return Objective.read(GOAL | changes, RECIPES / "story.yaml", planning)


def test_the_largest_budget_that_holds_the_objective(tmp_path):
    """A step of 16 bits takes 20 ms on a core, by its roofline, and one of 4 takes 13."""
    reached = objective().reach("smollm2-135m", SHAPE, (4.0, 16.0))
    held = [each for each in reached.tried if each.plan is not None]
    missed = [each for each in reached.tried if each.plan is None]
    assert reached.share == max(each.share for each in held)
    assert min(each.share for each in missed) > reached.share
    assert 0.45 < reached.share < 0.95
    assert "requests/s" in reached.why
    reached.save(tmp_path)
    assert json.loads((tmp_path / "objective.json").read_text())["share"] == reached.share


@pytest.mark.slow
def test_a_loose_objective_takes_all_bits_and_says_so():
    reached = objective(slo="ttft=2s,tpot=100ms").reach("smollm2-135m", SHAPE, (4.0, 8.0))
    assert reached.share == pytest.approx(kept(SHAPE, 8.25).weight_bytes / SHAPE.weight_bytes)
    assert reached.why.endswith("No more bits are allowed.")


def test_an_objective_that_no_bits_hold_is_refused_with_what_would_be_possible():
    with pytest.raises(UserError, match=r"weights of 4\.2 bits do not either\. .*tpot="):
        objective(slo="ttft=1s,tpot=5ms").reach("smollm2-135m", SHAPE, (4.0, 16.0))


def test_measured_times_are_of_another_model(tmp_path):
    cluster = tmp_path / "a100.yaml"
    cluster.write_text("nodes: 1\ndevices_per_node: 2\ndevice: a100-80g\n")
    with pytest.raises(UserError, match="leave cost out"):
        objective(cluster=str(cluster), cost="a100-distserve").check("opt-13b")


def test_keys_are_those_of_the_planner():
    with pytest.raises(UserError, match=r"did you mean compress\.objective\.rate"):
        objective(rat=2)
