"""What the program of every side speaks: one JSON object a line, in on stdin, out on stdout.

First `{"ready": true}` when the engine takes work; then, for each `{"prompts": [[ids]], "output": n}`,
`{"seconds": s, "drawn": [[ids]]}`. The programs run in environments of their own, so nothing is
imported here that Python does not bring.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """Prompts to continue at once, each by the same number of tokens."""

    prompts: list[list[int]]
    output: int


class Door:
    """The private way out: what engines print goes to stderr instead."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def ready(self) -> None:
        """The engine takes work."""
        self._say({"ready": True})

    def next(self) -> Work | None:
        """The next work; None: there is no more."""
        line = sys.stdin.readline()
        return Work(**json.loads(line)) if line.strip() else None

    def answer(self, seconds: float, drawn: Sequence[Sequence[int]]) -> None:
        """The work is done: how long it took, and the tokens that each prompt got."""
        self._say({"seconds": seconds, "drawn": drawn})

    def serve(self, run: Callable[[Work], list[list[int]]]) -> None:
        """Say ready, then time `run` on everything that comes."""
        self.ready()
        while (work := self.next()) is not None:
            begin = time.perf_counter()
            drawn = run(work)
            self.answer(time.perf_counter() - begin, drawn)

    def _say(self, what: dict[str, object]) -> None:
        self._out.write(json.dumps(what) + "\n")
        self._out.flush()
