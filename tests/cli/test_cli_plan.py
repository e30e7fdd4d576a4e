"""`plait plan` writes a placement that `plait simulate` loads; wrong input is told what would work."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from plait.cli.main import app
from plait.cli.plan import planning
from plait.cost.fitted import Fitted
from plait.cost.step_profile import StepProfile
from plait.planner.plans import Plans
from plait.planner.search import Policy
from plait.recipe.objective import kept
from plait.spec.errors import UserError

CLUSTER = "nodes: 1\ndevices_per_node: 2\ndevice: a100-80g\n"
TRACE = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
    f"2024-01-01 00:{i // 60:02}:{i % 60:02}.0,{200 + i},{4 + i % 5}\n" for i in range(100)
)


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "c.yaml").write_text(CLUSTER)
    (tmp_path / "t.csv").write_text(TRACE)

    def run(slo="ttft=1s,tpot=100ms", rate="2", *more, cluster="c.yaml", trace="t.csv"):
        files = ["--cluster", str(tmp_path / cluster), "--trace", str(tmp_path / trace)]
        wanted = ["--model", "opt-13b", "--slo", slo, "--rate", rate, "--out", str(tmp_path / "p.json")]
        return CliRunner().invoke(app, ["plan", *wanted, *files, *more], catch_exceptions=True)

    return run


def test_a_plan_is_written_and_simulated(plan, tmp_path):
    result = plan(
        "ttft=1s,tpot=100ms", "2", "--cost", "a100-distserve", "--policy", "colocated", "--jobs", "1"
    )
    assert result.exit_code == 0, result.output
    placement = json.loads((tmp_path / "p.json").read_text())
    assert placement["about"]["kind"] == "colocated"
    again = ["--placement", str(tmp_path / "p.json"), "--cluster", str(tmp_path / "c.yaml")]
    shown = CliRunner().invoke(app, ["simulate", "--model", "opt-13b", "--rate", "2", *again])
    assert shown.exit_code == 0, shown.output


def test_a_profile_of_this_machine_is_a_cost_with_its_saturation(plan, tmp_path):
    path = str(tmp_path / "profile.json")
    fitted = Fitted(5e6, 5e4, 0.0, 0.0, 8e6, 10.0, 1e5)
    StepProfile("opt-13b", "a machine", 1, "float32", 192, fitted, ()).save(tmp_path / "profile.json")
    result = plan("ttft=1s,tpot=100ms", "2", "--cost", path, "--policy", "disaggregated", "--jobs", "1")
    assert result.exit_code == 0, result.output
    instances = json.loads((tmp_path / "p.json").read_text())["instances"]
    assert {(each["tp"], each["pp"]) for each in instances} == {(1, 1)}
    assert {each["step_tokens"] for each in instances if each["role"] == "prefill"} == {192}
    again = ["--placement", str(tmp_path / "p.json"), "--cluster", str(tmp_path / "c.yaml"), "--cost", path]
    shown = CliRunner().invoke(app, ["simulate", "--model", "opt-13b", "--rate", "2", *again])
    assert shown.exit_code == 0, shown.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("ttft=1s,tpot=100ms", "0"), "above 0"),
        (("ttft=1us,tpot=1us", "2"), "At best: ttft="),
        (("ttft=1s", "2"), "write ttft=200ms,tpot=50ms"),
        (("ttft=1s,tpot=100ms", "2", "--cost", "b200"), "there are roofline"),
        (("ttft=1s,tpot=100ms", "100000"), "carry at most"),
    ],
)
def test_wrong_wishes_are_answered_with_what_would_work(plan, arguments, says):
    result = plan(*arguments, "--jobs", "1") if len(arguments) > 2 else plan(*arguments)
    assert isinstance(result.exception, UserError), result.output
    assert says in str(result.exception)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("bad.yaml", "nodes: [\n", "not YAML"),
        ("bad.yaml", "nodes: 1\ndevices_per_node: 0\ndevice: h100\n", "above 0"),
        ("bad.csv", "TIMESTAMP,ContextTokens\n", "GeneratedTokens"),
        ("bad.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\nnoon,1,1\n", "line 2"),
    ],
)
def test_malformed_files_are_named(plan, tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    files = {"cluster": name} if name.endswith("yaml") else {"trace": name}
    result = plan(**files)
    assert isinstance(result.exception, UserError), result.output
    assert says in str(result.exception)


def test_a_model_that_fits_nowhere_is_told_what_it_needs(tmp_path):
    (tmp_path / "c.yaml").write_text(CLUSTER)
    (tmp_path / "t.csv").write_text(TRACE)
    files = ["--cluster", str(tmp_path / "c.yaml"), "--trace", str(tmp_path / "t.csv")]
    wanted = ["--model", "opt-175b", "--slo", "ttft=1s,tpot=1s", "--rate", "1"]
    result = CliRunner().invoke(app, ["plan", *wanted, *files])
    assert isinstance(result.exception, UserError)
    assert "such devices an instance" in str(result.exception)


def test_an_elastic_plan_is_written_and_simulated(plan, tmp_path):
    result = plan("ttft=1s,tpot=100ms", "2", "--policy", "elastic", "--jobs", "1")
    assert result.exit_code == 0, result.output
    placement = json.loads((tmp_path / "p.json").read_text())
    assert placement["about"]["kind"] == "elastic"
    assert {each["role"] for each in placement["instances"]} == {"elastic"}
    files = ["--placement", str(tmp_path / "p.json"), "--cluster", str(tmp_path / "c.yaml")]
    again = ["--model", "opt-13b", "--rate", "2", "--slo", "ttft=1s,tpot=100ms", *files]
    shown = CliRunner().invoke(app, ["simulate", *again])
    assert shown.exit_code == 0, shown.output


@pytest.mark.slow
def test_mode_auto_compares_all_kinds_and_says_why():
    """The demo's requests: one core alone cannot read the long ones in time, two together can."""
    recipes = Path(__file__).parents[2] / "recipes"
    told = yaml.safe_load((recipes / "demo.yaml").read_text())["plan"]
    told |= {name: recipes / told[name] for name in ("cluster", "trace")}
    wishes = told | {"mode": Policy(told["mode"]), "requests": 100}
    asked = planning(model="smollm2-135m", **wishes)
    small = Plans(kept(asked.plans.shape, 4.6), asked.plans.cluster)
    outcome = replace(asked, plans=small).search().run()
    assert outcome.best.candidate.kind == "pools"
    assert {each.candidate.kind for each in outcome.entries} >= {"pools", "elastic"}
    assert outcome.hopeless == ("disaggregated", "hybrid")
    assert "No disaggregated or hybrid one meets the objectives even" in outcome.reason()
