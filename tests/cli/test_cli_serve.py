"""What `plait serve` makes of the options that name instances."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from plait.cli.main import app
from plait.cli.serve import _placement
from plait.spec.cluster import Placement, Role
from plait.spec.errors import UserError


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
