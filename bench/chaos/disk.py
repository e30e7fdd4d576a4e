"""Alignments whose disk is full in the midst of a checkpoint: they end with a sentence, and go on to the bit.

Ranks may write no file beyond a size from some moment on, one that lies between a stage's weights and the
moments of its optimiser: weights still go to the engine, and the next checkpoint fails half-way.
"""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.runtime.alignments import furnish, metrics, recipe

from chaos.served import family, gone
from chaos.verdict import Verdict

ITERATIONS, RANKS = 3, 2
RUN_S, END_S = 300.0, 30.0
"""Longest that a run may take, and to end once it cannot go on."""


@dataclass
class Run:
    """A run of `plait align` in a process of its own."""

    root: Path
    out: Path

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        """What it says goes to a file."""
        command = [
            sys.executable,
            "-m",
            "plait",
            "align",
            str(self.root / "recipe.yaml"),
            "--out",
            str(self.out),
        ]
        with (self.root / "said").open("wb") as said:
            return subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, stderr=said)

    @property
    def said(self) -> str:
        """By all its processes, in one line."""
        return " ".join((self.root / "said").read_text(errors="replace").split())

    @property
    def checkpoints(self) -> list[Path]:
        """That are whole."""
        return sorted((self.out / "checkpoints").glob("iteration-*/state.json"))

    @property
    def result(self) -> tuple[list[dict[str, object]], list[bytes]]:
        """Metrics and weights."""
        return metrics(self.out), [
            each.read_bytes() for each in sorted((self.out / "actor").glob("*.safetensors"))
        ]


def disk(root: Path, faults: int, seed: int) -> Verdict:
    """So many runs with a full disk, each at a checkpoint drawn by chance, and the one that has room."""
    root.mkdir()
    recipe(furnish(root), iterations=ITERATIONS, checkpoint={"every": 1})
    rng, found, whole = random.Random(seed), Verdict(), Run(root, root / "whole")
    assert whole.start().wait(RUN_S) == 0, whole.said
    limit = _limit(whole)
    for number in range(faults):
        run = Run(root, root / f"run-{number}")
        while not _one(run, rng.randrange(ITERATIONS), limit, found):
            shutil.rmtree(run.out)
        if run.start(*["--resume"] * bool(run.checkpoints)).wait(RUN_S) != 0:
            found.wrong.append(f"run {number} does not go on: {run.said[-500:]}")
        elif run.result != whole.result:
            found.wrong.append(f"run {number} goes on to something else")
        found.ends["resumed"] += 1
        found.faults["checkpoint: its disk is full"] += 1
    return found


def _limit(whole: Run) -> int:
    """Bytes that all weights have and not all moments."""
    files = sorted(whole.checkpoints[-1].parent.glob("*.safetensors"))
    weights = max(
        file.stat().st_size
        for file in (*files, *(whole.out / "actor").glob("*.safetensors"))
        if "optimiser" not in file.name
    )
    moments = max(file.stat().st_size for file in files if "optimiser" in file.name)
    assert weights < moments, "the fault would strike elsewhere"
    return (weights + moments) // 2


def _one(run: Run, after: int, limit: int, found: Verdict) -> bool:
    """Fill the disk once there are so many checkpoints; then the run must end soon, in words. False: it was
    done before."""
    process, ranks = run.start(), ()
    while process.poll() is None and not (ranks and len(run.checkpoints) >= after):
        ranks = ranks or _ranks(process.pid)
        time.sleep(0.01)
    for pid in ranks:
        with suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    if (status := process.wait(RUN_S)) == 0:
        return False
    left, said = gone(ranks, END_S), run.said
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    if left or status != 2 or "make room there" not in said or "Traceback" in said:
        found.wrong.append(f"status {status}, {len(left)} ranks left: {said[-500:]}")
    return True


def _ranks(pid: int) -> tuple[int, ...]:
    """Processes of the trainer below one, once all are there."""
    found = [each for each in family(pid) if b"plait.training" in _command(each)]
    return tuple(found) if len(found) == RANKS else ()


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):  # gone meanwhile
        return b""
