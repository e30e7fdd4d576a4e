"""A profile of a tiny model on a real worker, as `plait profile` makes it."""

import pytest

from plait.cost.catalog import cost_named
from plait.runtime.setup import ServeConfig
from plait.runtime.step_times import Grid, profile
from plait.spec.errors import UserError
from tests.tiny import tiny_folder

GRID = Grid(prompts=(4, 48), batches=(1, 3), contexts=(8, 24), steps=5, repeats=2)


async def test_every_cell_is_measured_and_the_fit_is_a_cost(tmp_path):
    folder = tiny_folder(tmp_path)
    said = []
    found = await profile(ServeConfig(model=str(folder), dtype="float32"), GRID, said.append)
    assert len(said) == len(found.points) == 2 + 4
    assert [(p.phase, p.rows) for p in found.points] == [("prefill", 1)] * 2 + [
        ("decode", 1),
        ("decode", 3),
    ] * 2
    assert all(point.ns > 0 for point in found.points)
    assert [point.tokens for point in found.points[:2]] == [4, 48]
    assert all(8 < point.tokens < 40 for point in found.points[2:])
    assert found.saturation_tokens in GRID.prompts
    assert found.machine
    found.save(tmp_path / "here.json")
    assert cost_named(str(tmp_path / "here.json")) == found.fitted


def test_a_grid_too_small_to_fit_is_refused():
    with pytest.raises(UserError, match="two prompt lengths"):
        Grid(prompts=(8,))
