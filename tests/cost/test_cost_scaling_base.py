"""The file of measured groups comes back as it was written, or says what is missing."""

from dataclasses import replace
from pathlib import Path

import pytest

from plait.cost.fitted import Fitted
from plait.cost.scaling_base import Chunk, Degree, ScalingBase
from plait.search.batching import Width
from plait.spec.errors import UserError

ONE = Fitted(10.0, 3.0, 0.5, 0.25, 100.0, 1.0, 2.0)
TWO = replace(ONE, prefill_ns=20.0, prefill_token_ns=1.5, prefill_square_ns=0.25)
BASE = ScalingBase("m", "cpu", 1, "auto", (Degree(2, 1, TWO, (Chunk(4, 2, 40.0),)), Degree(1, 1, ONE)))


def test_it_gives_widths_costs_and_itself_again(tmp_path: Path):
    path = tmp_path / "base.json"
    BASE.save(path)
    assert ScalingBase.load(path) == BASE
    assert BASE.widths(1) == (Width(1, 10.0, 3.0, 0.5), Width(2, 20.0, 1.5, 0.25))
    assert BASE.groups(1).models[2] == TWO
    assert BASE.decode_ns(1) == 100.0 + 8 * (2.0 + 1000.0)
    # 20 + 1.5 * 4 + 0.25 * 2 + 0.25 * 4 * (4 + 2 * 2) = 34.5 instead of 40
    assert BASE.degrees[0].worst == pytest.approx(1 - 34.5 / 40)


def test_what_was_not_measured_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"tp 2 alone was not measured.*--groups"):
        BASE.widths(2)
    (tmp_path / "other.json").write_text('{"model": 3}')
    with pytest.raises(UserError, match="no times of groups"):
        ScalingBase.load(tmp_path / "other.json")
