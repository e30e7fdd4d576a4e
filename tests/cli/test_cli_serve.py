"""What `plait serve` makes of the options that name instances."""

from pathlib import Path

import pytest

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
