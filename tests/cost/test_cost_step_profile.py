"""Profiles survive their file, feed `--cost` and `--pace`, and know where a step saturates."""

import pytest

from plait.cost.catalog import cost_named
from plait.cost.fitted import Fitted
from plait.cost.step_profile import Point, StepProfile, median_of, saturation
from plait.spec.errors import UserError

FITTED = Fitted(1e6, 2e3, 0.5, 0.0, 2e6, 10.0, 1e5)
POINTS = (Point("prefill", 1, 100, 1e6 + 2e5 + 5e3), Point("decode", 4, 50, 1.25 * (2e6 + 2e3 + 4e5)))
PROFILE = StepProfile("tiny", "a machine", 2, "bfloat16", 256, FITTED, POINTS)


def test_a_profile_survives_its_file_and_is_a_cost(tmp_path):
    path = tmp_path / "here.json"
    PROFILE.save(path)
    assert StepProfile.load(path) == PROFILE
    assert cost_named(str(path)) == FITTED
    assert PROFILE.worst == pytest.approx(0.2)
    path.write_text('{"fitted": {}}')
    with pytest.raises(UserError, match="plait profile"):
        cost_named(str(path))


def test_saturation_is_where_more_tokens_bring_no_more_a_second():
    assert saturation({16: 1.0, 64: 2.5, 256: 7.4, 1024: 30.0}) == 256
    assert saturation({16: 1.0}) == 16
    with pytest.raises(UserError, match="no prefill"):
        saturation({})


def test_the_median_was_measured():
    assert median_of([5.0, 1.0, 3.0, 9.0]) == 3.0
