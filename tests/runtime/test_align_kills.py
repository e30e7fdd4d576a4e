"""Runs of `plait align` in which some process is killed at some moment: the program that decides, a rank
(which holds stages of Actor, reference, Critic and reward model), or a worker that draws.

Each run ends in time, with a sentence if it cannot go on; gone on from its last checkpoint it has the metrics
and the weights of the run in which nobody died, to the bit.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.runtime.alignments import furnish, metrics, recipe
from tests.scale import scaled, seed

PATIENCE_S = 60.0
"""In which a run whose process was killed is over or done, and all its processes are gone."""
WAIT_S = 20.0
"""The longest that a rank waits for another."""
PROGRAM = "from plait.cli.main import main; main()"
VICTIMS = {"rank": "plait.training", "worker": "plait.worker"}


@dataclass
class Run:
    """A run in a process of its own."""

    root: Path
    out: Path

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        """Its standard error is kept in the file `said` of the workplace."""
        command = [sys.executable, "-c", PROGRAM, "align", str(self.root / "recipe.yaml")]
        with (self.root / "said").open("wb") as said:
            return subprocess.Popen(
                [*command, "--out", str(self.out), *options], stdout=subprocess.DEVNULL, stderr=said
            )

    @property
    def said(self) -> str:
        """By all its processes, the last time, in one line."""
        return " ".join((self.root / "said").read_text().split())

    def reached(self, iteration: int) -> bool:
        """Whether so many iterations are over."""
        rows = self.out / "metrics.jsonl"
        return iteration == 0 or (rows.is_file() and rows.read_text().count("\n") >= iteration)

    @property
    def checkpoints(self) -> list[Path]:
        """That are whole."""
        return sorted((self.out / "checkpoints").glob("iteration-*/state.json"))

    @property
    def result(self) -> tuple[list[dict], list[bytes]]:
        """Metrics and weights."""
        files = sorted((self.out / "actor").glob("*.safetensors"))
        return metrics(self.out), [file.read_bytes() for file in files]


@dataclass(frozen=True)
class Moment:
    """So many seconds after an iteration began; the first begins with the run."""

    iteration: int
    after_s: float


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Run, float, float]:
    """The run in which nobody died, its seconds, and those of an iteration."""
    root = furnish(tmp_path_factory.mktemp("kills"))
    recipe(
        root,
        models={"actor": "model", "reward": "model", "reward_function": None},
        iterations=3,
        rollout={
            "instances": 2,
            "prompts": 16,
            "max_tokens": 256,
            "repeat": 2,
            "tail": {"tail_share": 0.5, "kept": 1},
        },
        train={"patience_s": WAIT_S},
        checkpoint={"every": 1},
    )
    run, began_s = Run(root, root / "whole"), time.monotonic()
    assert run.start().wait() == 0, run.said
    rows = [json.loads(line) for line in (run.out / "metrics.jsonl").read_text().splitlines()]
    spent_s = sum(value for row in rows for key, value in row.items() if key.startswith("seconds/"))
    return run, time.monotonic() - began_s, spent_s / len(rows)


def children(pid: int) -> dict[int, str]:
    """Processes below one, with their command lines."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (FileNotFoundError, ProcessLookupError):  # gone meanwhile
            continue
        if parent == pid and command:
            found[int(folder.name)] = command
    return found


def gone(pids: list[int], limit_s: float) -> bool:
    """Whether all are within so many seconds."""
    end_s = time.monotonic() + limit_s
    while any(Path("/proc", str(pid)).exists() for pid in pids):
        if time.monotonic() > end_s:
            return False
        time.sleep(0.05)
    return True


def strike(run: Run, process: subprocess.Popen[bytes], kind: str, moment: Moment, dice: random.Random) -> str:
    """Kill a process of this kind, or the one that decides where there is none; says what was done."""
    while process.poll() is None and not run.reached(moment.iteration):
        time.sleep(0.005)
    try:
        process.wait(moment.after_s)
    except subprocess.TimeoutExpired:
        below = children(process.pid)
        name = VICTIMS.get(kind)
        able = [pid for pid, command in sorted(below.items()) if name is not None and name in command]
        os.kill(dice.choice(able) if able else process.pid, signal.SIGKILL)
        process.wait(PATIENCE_S)
        assert gone(list(below), PATIENCE_S), "a process outlived the run"
        return f"{kind if able else 'driver'} killed {moment.after_s:.2f} s after {moment.iteration} began"
    pytest.fail(f"nobody was killed: the run had ended {moment.after_s:.2f} s after {moment.iteration} began")


@pytest.mark.slow
@pytest.mark.parametrize("point", range(scaled(24)))
def test_a_run_that_was_killed_goes_on_to_the_bit(whole, tmp_path, point):
    undisturbed, seconds, iteration_s = whole
    dice = random.Random(seed() + point)
    run, kind = Run(undisturbed.root, tmp_path / "run"), ("rank", "worker", "driver")[point % 3]
    iteration = dice.choice((0, 0, 1, 1, 2, 2))
    moment = Moment(iteration, dice.uniform(0, iteration_s if iteration else seconds - 3 * iteration_s))
    process = run.start()
    done = strike(run, process, kind, moment, dice)
    print(f"{done}: status {process.returncode}, {len(run.checkpoints)} checkpoints")
    if process.returncode not in (0, -signal.SIGKILL):
        assert "Traceback" not in run.said, run.said
        assert "resume from the last checkpoint" in run.said, run.said
    if process.returncode:
        again = run.start(*["--resume"] * bool(run.checkpoints))
        assert again.wait(PATIENCE_S + seconds) == 0, run.said
    assert run.result == undisturbed.result


@pytest.mark.slow
def test_a_rank_that_stands_still_is_noticed_in_time(whole, tmp_path):
    """It lives, and does nothing more: others wait for it no longer than the recipe says."""
    undisturbed, seconds, _ = whole
    run = Run(undisturbed.root, tmp_path / "run")
    process = run.start()
    while process.poll() is None and not run.reached(1):
        time.sleep(0.005)
    below = children(process.pid)
    ranks = [pid for pid, command in sorted(below.items()) if VICTIMS["rank"] in command]
    os.kill(ranks[0], signal.SIGSTOP)
    assert process.wait(WAIT_S + PATIENCE_S) == 1
    assert gone(list(below), PATIENCE_S), "a process outlived the run"
    assert "rank 0" in run.said, run.said
    assert "resume from the last checkpoint" in run.said, run.said
    again = run.start(*["--resume"] * bool(run.checkpoints))  # the first one may not have been whole
    assert again.wait(PATIENCE_S + seconds) == 0, run.said
    assert run.result == undisturbed.result
