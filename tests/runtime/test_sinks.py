"""Figures reach those who are told of them, and what is not installed is refused with the next step."""

import sqlite3
import subprocess
import sys

import pytest

from plait.runtime import sinks
from plait.runtime.sinks import LogRecipe, check_sinks, open_sinks
from plait.spec.errors import UserError

FIGURES = [{"score": 0.25, "actor/loss": 1.5}, {"score": 0.5, "actor/loss": 1.25}]


def told(config: LogRecipe, out, first: int = 0) -> None:
    """Tell all figures from an iteration on."""
    check_sinks(config)
    opened = open_sinks(config, out, first, {"seed": 3})
    for iteration in range(first, len(FIGURES)):
        for sink in opened:
            sink.note(iteration, FIGURES[iteration])
    for sink in opened:
        sink.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tensorboard's own protobufs
def test_tensorboard_reads_what_was_told_once_also_after_a_resume(tmp_path):
    pytest.importorskip("tensorboard", reason="writes event files")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    told(LogRecipe(tensorboard=True), tmp_path)
    told(LogRecipe(tensorboard=True), tmp_path, first=1)  # the second iteration again
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    for key in FIGURES[0]:
        assert [(each.step, each.value) for each in read.Scalars(key)] == [
            (iteration, figures[key]) for iteration, figures in enumerate(FIGURES)
        ]


def test_trackio_keeps_what_was_told(tmp_path, monkeypatch):
    pytest.importorskip("trackio", reason="keeps figures in a database")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    program = "from pathlib import Path; from tests.runtime.test_sinks import LogRecipe, told\n"
    program += f"told(LogRecipe(trackio='sums'), Path({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", program], check=True)  # it looks for its folder once
    with sqlite3.connect(tmp_path / "sums.db") as database:
        assert database.execute("select count(*) from metrics").fetchone() == (len(FIGURES),)


def test_wandb_keeps_what_was_told(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="keeps figures in a file")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    told(LogRecipe(wandb="sums"), tmp_path)
    assert list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))


@pytest.mark.parametrize(
    ("config", "package"),
    [
        (LogRecipe(tensorboard=True), "tensorboard"),
        (LogRecipe(trackio="a"), "trackio"),
        (LogRecipe(wandb="a"), "wandb"),
    ],
)
def test_what_is_not_installed_is_refused(monkeypatch, config, package):
    monkeypatch.setattr(sinks, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=f"pip install {package}, or leave it out"):
        check_sinks(config)


def test_nobody_is_told_unless_asked(tmp_path):
    check_sinks(LogRecipe())
    assert open_sinks(LogRecipe(), tmp_path, 0, {}) == []
