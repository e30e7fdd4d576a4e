"""`plait plan rlhf` and `plait simulate rlhf`, and that plan and simulate still stand by themselves."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from plait.cli.main import app
from plait.planner.cluster import read_cluster
from plait.planner.rlhf_job import read_job
from plait.search.pipelines.form import from_csv
from plait.spec.errors import UserError

JOB = "actor: llama-33b\ncritic: llama-13b\nsamples: 128\nlongest: 256\nmedian: 60\n"
CLUSTER = (
    "nodes: 8\ndevices_per_node: 8\ndevice: h100\nlocal_latency_us: 0.5\nremote_gbps: 1600\n"
    "remote_latency_us: 20\n"
)


@pytest.fixture
def rlhf(tmp_path):
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "cluster.yaml").write_text(CLUSTER)

    def run(verb, *more):
        files = [str(tmp_path / "job.yaml"), "--cluster", str(tmp_path / "cluster.yaml")]
        return CliRunner().invoke(app, [verb, "rlhf", *files, "--search-s", "1", *more])

    return run


def test_a_plan_names_layouts_a_tail_and_seconds(rlhf, tmp_path):
    out, schedule = tmp_path / "plan.json", tmp_path / "schedule.csv"
    result = rlhf("plan", "--out", str(out), "--schedule-out", str(schedule))
    assert result.exit_code == 0, result.output
    told = json.loads(out.read_text())
    serial, fused = (sum(each.values()) for each in told["seconds"])
    assert fused < serial
    assert told["tail"]["kept"] >= 1
    assert len(from_csv(schedule.read_text()).rows) >= 1


def test_an_iteration_is_simulated_and_drawn(rlhf, tmp_path):
    chart = tmp_path / "chart.txt"
    result = rlhf("simulate", "--left", "16", "--kept", "2", "--intra", "greedy", "--gantt", str(chart))
    assert result.exit_code == 0, result.output
    assert "tail of 16 on 2" in result.output.replace("\n", " ")
    assert "instance 0" in chart.read_text()
    assert "rank 0" in chart.read_text()


def test_half_a_tail_is_refused(rlhf):
    result = rlhf("simulate", "--left", "16")
    assert isinstance(result.exception, UserError)
    assert "belong together" in str(result.exception)


@pytest.mark.parametrize("verb", ["plan", "simulate"])
def test_help_names_what_serving_takes(verb):
    result = CliRunner().invoke(app, [verb, "--help"])
    assert result.exit_code == 0
    assert "--cluster" in result.output


def test_what_ships_can_be_read():
    plans = Path(__file__).parents[2] / "recipes" / "plan"
    assert read_job(plans / "rlhf.yaml").samples == 512
    assert read_cluster(plans / "h100-256.yaml").devices == 256
