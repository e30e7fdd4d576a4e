"""Placement files: what they say is taken, and what they should not say is refused in words."""

import pytest

from plait.spec.cluster import Instance, Placement, Role
from plait.spec.errors import UserError
from plait.workload.placement import read_placement


def test_json_and_yaml_say_the_same(tmp_path):
    yaml, json = tmp_path / "p.yaml", tmp_path / "p.json"
    yaml.write_text("instances:\n- role: prefill\n- {role: decode, tp: 2, step_tokens: 700}\n- {}\n")
    json.write_text(
        '{"instances": [{"role": "prefill"}, {"role": "decode", "tp": 2, "step_tokens": 700}, {}]}'
    )
    wanted = Placement(
        (Instance(0, Role.PREFILL), Instance(1, Role.DECODE, tp=2, step_tokens=700), Instance(2))
    )
    assert read_placement(yaml) == read_placement(json) == wanted


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("instances: [", "neither JSON nor YAML"),
        ("[]", "no list called instances"),
        ("instances: []", "no list called instances"),
        ("instances: [3]", "instance 0: not an object"),
        ("instances: [{rôle: decode}]", "rôle is not one of id, role"),
        ("instances: [{role: dekode}]", "instance 0: Invalid enum value 'dekode'"),
        ("instances: [{tp: 0}]", "at least 1"),
        ("instances: [{id: 1}, {id: 1}]", "instances 0 to 1, each once"),
    ],
)
def test_what_is_no_placement_is_refused(tmp_path, text, words):
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        read_placement(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.yaml"):
        read_placement(tmp_path / "none.yaml")
