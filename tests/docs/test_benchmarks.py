"""The page of figures is made from the runs that are kept."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def maker():
    spec = importlib.util.spec_from_file_location("docs_benchmarks", ROOT / "docs" / "benchmarks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_kept_runs_make(maker):
    stale = "bench/results has changed: run `python docs/benchmarks.py`"
    assert maker.PAGE.read_text() == maker.page(maker.runs()), stale


def test_every_kept_run_names_a_command_of_this_repository(maker):
    for run in maker.runs():
        script = run.kept["command"].split()[1]
        assert (ROOT / script).is_file(), f"{run.path.name} was made by {script}, which is gone"
        assert run.kept["commit"]
