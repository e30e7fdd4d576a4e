"""`Side`: one engine in a process of its own, asked through its door (see door.py)."""

import json
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class Broken(Exception):
    """An engine did not start, or did not answer; the message names its log."""


@dataclass(frozen=True)
class Turn:
    """One piece of work, done."""

    seconds: float
    drawn: list[list[int]]


class Side:
    """A running engine. Leave it with `close`."""

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        """Returns when the engine takes work. Raises Broken."""
        self.name, self._log = name, log
        begin = time.perf_counter()
        with log.open("w") as sink:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=sink,
                text=True,
                env=os.environ | {"HF_HUB_OFFLINE": "1"},
            )
        self._read()
        self.ready_s = time.perf_counter() - begin
        """From the start of the process until it took work."""

    def turn(self, prompts: list[list[int]], output: int) -> Turn:
        """Continue all prompts at once by `output` tokens each. Raises Broken, also for other lengths."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompts": prompts, "output": output}) + "\n")
        self._process.stdin.flush()
        turn = Turn(**self._read())
        if [len(drawn) for drawn in turn.drawn] != [output] * len(prompts):
            raise Broken(f"{self.name} did not draw {output} tokens for each prompt")
        return turn

    def close(self) -> None:
        """Let it end; returns when it is gone."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise Broken(f"{self.name} ended with {self._process.wait()}: see {self._log}")
        return json.loads(line)
