"""What `plait serve` makes of the options that name instances."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from plait.cli.main import app
from plait.cli.serve import _placement, serving
from plait.cost.catalog import CONFIGS
from plait.spec.cluster import Placement, Role
from plait.spec.errors import UserError
from plait.spec.slo import Slo

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize(
    ("instances", "prefill", "decode", "letters"),
    [
        (1, 0, 0, "m"),
        (3, 0, 0, "mmm"),
        (1, 2, 2, "ppdd"),
        (4, 2, 2, "ppdd"),
        (5, 2, 2, "ppddm"),
        (2, 1, 0, "pm"),
    ],
)
def test_instances_beyond_both_phases_are_mixed(instances, prefill, decode, letters):
    placement = _placement(None, instances, prefill, decode)
    assert [each.role.value[0] for each in placement.instances] == list(letters)
    assert [each.id for each in placement.instances] == list(range(len(letters)))


def test_a_file_names_all_instances(tmp_path: Path):
    path = tmp_path / "placement.yaml"
    path.write_text("instances: [{role: prefill}, {role: decode}]")
    assert _placement(path, 1, 0, 0) == Placement.disaggregated(1, 1)
    assert _placement(path, 1, 0, 0).instances[1].role is Role.DECODE
    with pytest.raises(UserError, match="leave out"):
        _placement(path, 2, 0, 0)
    with pytest.raises(UserError, match="leave out"):
        _placement(path, 1, 1, 0)
    with pytest.raises(UserError, match="leave out"):
        _placement(path, 1, 0, 0, tp=2)


def test_processes_are_those_of_every_instance_or_of_each_in_the_file(tmp_path: Path):
    placement = _placement(None, 2, 1, 1, tp=3, pp=2)
    assert [(each.tp, each.pp) for each in placement.instances] == [(3, 2), (3, 2)]
    path = tmp_path / "placement.yaml"
    path.write_text("instances: [{role: prefill, tp: 3}, {role: decode, pp: 2}]")
    assert [(each.tp, each.pp) for each in _placement(path, 1, 0, 0).instances] == [(3, 1), (1, 2)]


def test_replanning_needs_objectives():
    result = CliRunner().invoke(app, ["serve", "tiny", "--replan", "c.yaml"])
    assert isinstance(result.exception, UserError)
    assert "--slo" in str(result.exception)


def test_elastic_instances_are_all_of_them(tmp_path: Path):
    placement = _placement(None, 3, 0, 0, tp=2, elastic=True)
    assert [(each.role, each.tp) for each in placement.instances] == [(Role.ELASTIC, 2)] * 3
    with pytest.raises(UserError, match="leave out"):
        _placement(None, 2, 1, 1, elastic=True)


def test_an_elastic_placement_is_what_the_planner_chose(tmp_path: Path):
    path = tmp_path / "placement.yaml"
    path.write_text("instances: [{role: elastic-prefill, tp: 2}, {role: elastic-decode}]")
    placement = _placement(path, 1, 0, 0, elastic=True)
    assert [(each.role, each.tp) for each in placement.instances] == [
        (Role.ELASTIC_PREFILL, 2),
        (Role.ELASTIC_DECODE, 1),
    ]
    with pytest.raises(UserError, match="leave out"):
        _placement(path, 2, 0, 0, elastic=True)
    path.write_text("instances: [{role: prefill}, {role: decode}]")
    with pytest.raises(UserError, match="no elastic instances"):
        _placement(path, 1, 0, 0, elastic=True)


PLANNED = {"about": {"slo": "ttft=300ms,tpot=30ms"}, "instances": [{"role": "prefill"}, {"role": "decode"}]}


def test_a_plan_is_followed_with_its_objectives(tmp_path: Path):
    plan = tmp_path / "placement.json"
    plan.write_text(json.dumps(PLANNED))
    told = serving("tiny", plan=plan)
    assert told.engine.manager.placement == Placement.disaggregated(1, 1)
    assert told.engine.fleet.instances == 2
    assert told.server.slo == Slo(300_000_000, 30_000_000)
    assert told.engine.manager.elastic.tpot_ns == 30_000_000
    assert serving("tiny", plan=plan, slo="ttft=1s,tpot=1s").server.slo == Slo(10**9, 10**9)


def test_auto_plans_for_a_trace_and_says_why(tmp_path: Path, capsys):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIGS["smollm2-135m"]))
    trace = tmp_path / "trace.csv"
    rows = [f"2024-01-01 00:00:{at:02d}.000000,{64 + at},{8 + at % 8}" for at in range(40)]
    trace.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]) + "\n")
    cluster = RECIPES / "plan" / "cpu-2.yaml"
    told = serving(str(folder), auto=trace, on=cluster, slo="ttft=2s,tpot=200ms")
    assert [each.role for each in told.engine.manager.placement.instances] == [Role.MIXED]
    said = capsys.readouterr()
    assert not said.out
    assert "requests/s a device, so 1 of it" in said.err.replace("\n", " ")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"plan": Path("p.json"), "auto": Path("t.csv")}, "choose one"),
        ({"plan": Path("p.json"), "instances": 2}, "leave out --instances"),
        ({"auto": Path("t.csv"), "elastic": True}, "leave out --instances"),
        ({"auto": Path("t.csv"), "slo": "ttft=1s,tpot=1s"}, "--on"),
        ({"plan": Path("p.json")}, "cannot read the placement"),
    ],
)
def test_a_plan_says_all_about_instances(options, says):
    with pytest.raises(UserError, match=says):
        serving("tiny", **options)


def test_adapters_are_named_with_their_folders(monkeypatch):
    monkeypatch.delenv("PLAIT_ADMIN_KEY", raising=False)
    told = serving("tiny", lora=["polite=a/b", "rude=c=d"])
    assert told.engine.adapters == (("polite", Path("a/b")), ("rude", Path("c=d")))
    assert told.server.admin_key is None
    for bad in (["polite"], ["=x"], ["x="], ["x=a", "x=b"]):
        with pytest.raises(UserError, match="NAME=FOLDER"):
            serving("tiny", lora=bad)


def test_the_admin_key_is_of_the_option_or_the_environment(monkeypatch):
    key, other = "0123456789abcdef", "fedcba9876543210"
    monkeypatch.setenv("PLAIT_ADMIN_KEY", key)
    told = serving("tiny", lora_dir=[Path("adapters")])
    assert (told.server.admin_key, told.server.lora_dirs) == (key, (Path("adapters"),))
    assert serving("tiny", admin_key=other).server.admin_key == other
    with pytest.raises(UserError, match="API keys"):
        serving("tiny", api_key=[key])
    with pytest.raises(UserError, match="under 16"):
        serving("tiny", admin_key="")
    monkeypatch.setenv("PLAIT_ADMIN_KEY", "")
    assert serving("tiny").server.admin_key is None
