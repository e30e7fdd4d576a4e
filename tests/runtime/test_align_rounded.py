"""Samples drawn by an Actor whose weights have 8 bits: corrected for, and refused where that is not said."""

import pytest

from plait.spec.errors import UserError
from tests.runtime.alignments import align, furnish, recipe

ROLLOUT = {"dtype": "bfloat16", "exact": False}
ROUNDED = ROLLOUT | {"weights": "int8"}
MISMATCH = {"mismatch": {"level": "token", "most": 2.0}}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    return furnish(tmp_path_factory.mktemp("rounded"))


@pytest.mark.slow
def test_tokens_of_a_rounded_generator_are_weighed(workplace, tmp_path):
    """In every iteration: what is handed over is rounded anew."""
    told = recipe(workplace, rollout=ROUNDED, experience=MISMATCH, iterations=3)
    rows = align(workplace, tmp_path / "rounded", told)
    plain = align(workplace, tmp_path / "plain", recipe(workplace, rollout=ROLLOUT, experience=MISMATCH))
    assert len(rows) == 3
    for row in rows:
        assert 1e-4 < row["rollout_gap_mean"] < 0.2
        assert row["rollout_weight"] == pytest.approx(1, abs=0.05)
        assert row["rollout_weight"] != 1
        assert row["actor/first_ratio"] == pytest.approx(1, abs=1e-3)
    assert len({row["rollout_gap"] for row in rows}) == 3
    assert rows[0]["rollout_gap_mean"] > plain[0]["rollout_gap_mean"]


@pytest.mark.parametrize(
    ("rollout", "experience", "says"),
    [
        (ROUNDED, {}, "experience.mismatch"),
        (ROUNDED | {"exact": True}, MISMATCH, "exact"),
        (ROUNDED | {"dtype": "float32"}, MISMATCH, "rollout.dtype to bfloat16"),
        (ROUNDED | {"weights": "int5"}, MISMATCH, "rollout.weights"),
    ],
)
def test_a_rounded_generator_needs_its_correction(workplace, rollout, experience, says):
    with pytest.raises(UserError, match=says):
        recipe(workplace, rollout=rollout, experience=experience)
