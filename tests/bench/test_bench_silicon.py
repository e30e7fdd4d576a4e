"""The silicon sample is cut as the claim says: twins once, configurations whole."""

import importlib.util
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
SAMPLE = BENCH.parents[1] / "shared/data/profiles/aiconfigurator_silicon_sample.csv"
pytestmark = pytest.mark.skipif(not SAMPLE.exists(), reason="the silicon sample is not in ../shared/data")


@pytest.fixture(scope="module")
def silicon():
    sys.path.insert(0, str(BENCH))
    try:
        spec = importlib.util.spec_from_file_location("silicon", BENCH / "silicon.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["silicon"] = module
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(BENCH))
        sys.modules.pop("silicon", None)


def test_twins_are_taken_once_and_configurations_stay_together(silicon):
    rows = silicon.read(SAMPLE)
    split = [row for row in rows if row.served.disaggregated]
    assert len(split) == 954
    assert sum(row.served.workers_known for row in split) == 274
    assert len(rows) - len(split) == 2823
    assert {row.served.model.name for row in rows if "dsr1" in row.id} == {"DeepSeek-V3"}
    parts = silicon.folds(rows, 0)
    home = {}
    for row, part in zip(rows, parts.tolist(), strict=True):
        assert home.setdefault(row.config, part) == part
    assert sorted(set(home.values())) == [0, 1, 2, 3, 4]
    assert (silicon.folds(rows, 0) == parts).all()
    assert (silicon.folds(rows, 1) != parts).any()
