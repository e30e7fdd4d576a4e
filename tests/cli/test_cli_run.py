"""`plait run` on a tiny model: what is refused before work starts, a dry run, and the whole story."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import yaml

pytest.importorskip("torch", reason="needs the align and compress extras")
pytest.importorskip("torch_pruning", reason="needs the compress extra")

from typer.testing import CliRunner

from plait.cli.main import app
from plait.recipe.provenance import FILE, Provenance
from plait.spec.errors import UserError
from tests.docs.blocks import blocks

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """recipes/story.yaml with the start that it asks for, of a few supervised steps."""
    root = tmp_path_factory.mktemp("story")
    shutil.copytree(ROOT / "recipes", root / "recipes")
    told = importlib.util.spec_from_file_location("adder", ROOT / "bench" / "alignment" / "adder.py")
    adder = importlib.util.module_from_spec(told)
    told.loader.exec_module(adder)
    start = root / "runs" / "start-story"
    start.mkdir(parents=True)
    for seed, name in ((2, "train.txt"), (3, "test.txt")):
        adder.write_text(start / name, 1000, seed)
    adder.write(start, 2, context=512)
    template = "{% for each in messages %}{{ each.content }}{% endfor %}"
    (start / "adder" / "chat_template.jinja").write_text(template)
    return root


def story(root: Path, **changes) -> Path:
    """The shipped recipe with keys of stages that differ; a stage that is None is left out."""
    raw = yaml.safe_load((root / "recipes" / "story.yaml").read_text())
    for name, keys in changes.items():
        raw[name] = None if keys is None else raw[name] | keys
    path = root / "recipes" / "changed.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in raw.items() if v is not None}, sort_keys=False))
    return path


def run(recipe: Path, out: Path, *more: str):
    return CliRunner().invoke(app, ["run", str(recipe), "--out", str(out), *more])


def test_a_dry_run_says_what_each_stage_would_do(world):
    journal = world / "dry.jsonl"
    found = run(story(world, serve={"journal": str(journal)}), world / "dry", "--dry-run")
    assert found.exit_code == 0, found.exception
    assert not journal.exists()
    lines = [line for line in found.stdout.splitlines() if "to do" in line]
    assert [line.split()[1] for line in lines] == ["align", "compress", "plan", "serve"]
    assert "iterations" in lines[0]
    assert "MB" in lines[0]
    assert not (world / "dry").exists()
    only = run(story(world), world / "dry", "--dry-run", "--until", "compress")
    assert "serve" not in only.stdout


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"align": {"iteration": 2}}, "did you mean align.iterations?"),
        ({"align": {"rollout": {"prompt": 2}}}, "did you mean align.rollout.prompts?"),
        ({"compress": {"budgets": ["size=0.4"]}}, "did you mean compress.budget?"),
        ({"compress": {"budget": ["watts=0.4"]}}, "compress: no cost is named watts"),
        ({"compress": {"budget": ["size=4"]}}, "compress: size=4 is no share"),
        ({"compress": {"labels": 5}}, "compress: 5 labels"),
        ({"compress": {"tokens": 100_000}}, "ask for fewer tokens"),
        ({"compress": {"target": "gguf"}}, "use `plait compress` for it"),
        ({"compress": {"model": "resnet20"}}, "use `plait compress` for image classifiers"),
        ({"plan": {"cost": "b200"}}, "there are roofline"),
        ({"plan": {"rate": 0}}, "plan: the rate is 0"),
        ({"serve": {"device": "tpu"}}, "serve: device is tpu"),
        ({"serve": {"load": {"profile": "closed"}}}, "needs --concurrency"),
        ({"serve": {"load": {"num_prompts": 3}}}, "unknown field serve.load.num_prompts"),
        ({"serve": {"requests": 0}}, "serve.requests"),
        ({"serve": {"kill_after": 8}}, "serve.kill_after must be below serve.requests"),
        ({"compress": {"budget": ["step=1.5"]}}, "compress: step=1.5 is no share"),
        ({"plan": {"mode": "elastic"}}, "plan: mode and policy say the same"),
        ({"align": None, "compress": None}, "plan.model is missing"),
    ],
)
def test_what_can_be_refused_is_refused_before_work_starts(world, changes, says):
    found = run(story(world, **changes), world / "refused")
    assert isinstance(found.exception, UserError), found.output
    assert says in str(found.exception)
    assert not (world / "refused").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("plan: {}\nalign: {}\n", "write them in this order"),
        ("alignment: {}\n", "did you mean align?"),
        ("{}\n", "has no stages"),
        ("serve: {model: x, load: {rate: 2}}\n", "needs serve.requests"),
        ("serve: {model: x, kill_after: 2}\n", "serve.kill_after needs serve.requests"),
    ],
)
def test_stages_are_known_and_in_order(tmp_path, text, says):
    (tmp_path / "recipe.yaml").write_text(text)
    found = run(tmp_path / "recipe.yaml", tmp_path / "out")
    assert isinstance(found.exception, UserError), found.output
    assert says in str(found.exception)


def test_a_stage_that_is_not_there_cannot_be_the_last(world):
    found = run(story(world, plan=None), world / "none", "--until", "plan")
    assert "it has align, compress, serve" in str(found.exception)


def test_a_plan_is_made_once_and_is_what_is_served(world):
    """The two stages that are quick, on the model as it is."""
    model = {"model": "../runs/start-story/adder"}
    recipe = story(world, align=None, compress=None, plan=model, serve={"load": {"rate": 50, "vocab": 200}})
    out = world / "planned"
    found = run(recipe, out, "--until", "plan")
    assert found.exit_code == 0, found.exception
    assert found.stdout == f"{out / 'plan' / 'placement.json'}\n"
    first = (out / "plan" / FILE).read_text()
    served = run(recipe, out)
    assert served.exit_code == 0, served.exception
    assert served.stdout.splitlines()[-1] == str(out / "serve" / "load.json")
    assert (out / "plan" / FILE).read_text() == first
    told = Provenance.load(out / "serve")
    assert told.metrics["completed"] == told.metrics["requests"] == 8
    assert told.inputs["placement"] == Provenance.load(out / "plan").result_sha256


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_no_request_and_the_report_says_so(world):
    pytest.importorskip("matplotlib", reason="needs the report extra")
    keys = {"model": "../runs/start-story/adder", "kill_after": 3, "ask": ["12+34="]}
    load = {"rate": 50, "vocab": 200, "output_len": 40, "ignore_eos": True, "slo": "ttft=1s,tpot=1s"}
    recipe = story(world, align=None, compress=None, plan=None, serve=keys | {"load": load})
    out = world / "killed"
    found = run(recipe, out, "--report")
    assert found.exit_code == 0, found.exception
    assert found.stdout.splitlines() == [str(out / "serve" / "load.json"), str(out / "report.html")]
    told = Provenance.load(out / "serve").metrics
    drill = told["drill"]
    assert told["completed"] == told["requests"] == 8
    assert drill["recovered"] == len(drill["requests"]) >= 1
    assert drill["killed"] == 0
    (asked,) = json.loads((out / "serve" / "answers.json").read_text())
    page = (out / "report.html").read_text()
    assert f"computed anew: {drill['recovered']}" in page
    assert "a worker is away" in page
    assert asked["question"] in page


@pytest.mark.slow
def test_an_objective_becomes_a_budget_of_bytes(world):
    raw = yaml.safe_load((world / "recipes" / "story.yaml").read_text())
    goal = raw["plan"] | {"requests": 50}
    compress = {key: value for key, value in raw["compress"].items() if key != "budget"}
    compress |= {"model": "../runs/start-story/adder", "objective": goal}
    path = world / "recipes" / "objective.yaml"
    path.write_text(yaml.safe_dump({"compress": compress}))
    out = world / "objective"
    found = run(path, out, "--report")
    assert found.exit_code == 0, found.exception
    reached = json.loads((out / "compress" / "objective.json").read_text())
    told = Provenance.load(out / "compress")
    assert told.metrics["objective"] == reached["why"]
    assert "objective.trace" in told.inputs
    report = json.loads((out / "compress" / "report.json").read_text())
    assert report["costs"]["memory"] <= report["limits"]["memory"]
    assert reached["why"] in (out / "report.html").read_text()


@pytest.mark.slow
def test_the_whole_story_runs_and_runs_once(world):
    out = world / "whole"
    found = run(story(world), out)
    assert found.exit_code == 0, found.exception
    results = ["align/actor", "compress/model", "plan/placement.json", "serve/load.json"]
    assert found.stdout.splitlines() == [str(out / each) for each in results]
    report = json.loads((out / "compress" / "report.json").read_text())
    assert Provenance.load(out / "compress").metrics["bytes"] == report["bytes"]
    told = {name: (out / name / FILE).read_text() for name in ("align", "compress", "plan", "serve")}
    assert run(story(world), out).exit_code == 0
    assert told == {name: (out / name / FILE).read_text() for name in told}
    labels = (out / "compress" / "labels.jsonl").read_text()
    other = run(story(world, compress={"budget": ["size=0.4"]}), out)
    assert other.exit_code == 0, other.exception
    assert (out / "align" / FILE).read_text() == told["align"]
    assert (out / "compress" / "labels.jsonl").read_text().startswith(labels)
    assert (out / "serve" / FILE).read_text() != told["serve"]


@pytest.mark.slow
def test_an_alignment_that_broke_off_goes_on_from_its_checkpoint(world):
    """The reward function fails in the second iteration, as long as a file is not there."""
    mended, calls = world / "mended", world / "calls"
    calls.write_text("")
    (world / "recipes" / "reward.py").write_text(
        f"""from pathlib import Path

def score(prompts, completions, **_):
    calls = Path({str(calls)!r})
    calls.write_text(calls.read_text() + "x")
    assert len(calls.read_text()) < 5 or Path({str(mended)!r}).exists()
    return [float(len(text)) for text in completions]
"""
    )
    start = {"models": {"actor": "../runs/start-story/adder", "reward_function": "reward.py:score"}}
    recipe = story(world, align=start | {"iterations": 3, "checkpoint": {"every": 1}})
    out = world / "broken"
    broken = run(recipe, out, "--until", "align")
    assert broken.exit_code != 0
    metrics = out / "align" / "metrics.jsonl"
    before = metrics.read_text()
    assert 1 <= len(before.splitlines()) < 3
    assert not Provenance.load(out / "align").result_sha256
    mended.touch()
    whole = run(recipe, out, "--until", "align")
    assert whole.exit_code == 0, whole.exception
    assert metrics.read_text().startswith(before)
    assert len(metrics.read_text().splitlines()) == 3


def test_recipes_that_are_shown_can_be_read(tmp_path):
    from plait.cli.bench import loading
    from plait.cli.compress import compression
    from plait.cli.plan import planning
    from plait.cli.serve import serving
    from plait.recipe.stage import NAMES, Verbs
    from plait.recipe.story import read_story

    verbs = Verbs(print, compression, planning, serving, loading)
    shown, objective, *_ = (b for b in blocks(ROOT / "docs" / "recipe.md") if b.language == "yaml")
    (tmp_path / "shown.yaml").write_text(shown.body)
    (tmp_path / "objective.yaml").write_text(objective.body)
    (compress,) = read_story(tmp_path / "objective.yaml", verbs).stages
    assert compress.objective is not None
    for path in (
        *(ROOT / "recipes" / name for name in ("story.yaml", "smollm2.yaml", "demo.yaml")),
        tmp_path / "shown.yaml",
    ):
        assert tuple(s.name for s in read_story(path, verbs).stages) == NAMES
