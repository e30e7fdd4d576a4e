"""`Progress`: how far the compute lane is, for copies that follow it layer by layer."""

import threading
import time
from collections.abc import Callable

from plait.spec.errors import ServiceError

REMEMBERED = 64
"""Failed steps that are told apart from done ones; nobody asks for older ones."""


class Unreached(ServiceError):
    """A step failed, or did not come so far in time."""


class Progress:
    """Written by the compute lane, read by copy threads. Steps of a lane run in the order of their ids."""

    def __init__(self) -> None:
        self._moved = threading.Condition()
        self._running: int | None = None
        self._rounds = 0
        """Of the running step."""
        self._layers = 0
        """Layers that the running step has stored, from the first on. Of one of several rounds nothing is
        told before it is over."""
        self._last = -1
        """The last step that ended."""
        self._failed: dict[int, None] = {}

    def begin(self, step: int, rounds: int = 1) -> None:
        """The lane begins with a step."""
        with self._moved:
            self._running, self._rounds, self._layers = step, rounds, 0

    def stored(self, layers: int) -> None:
        """The running step has stored the keys and values of so many layers."""
        if self._rounds > 1:
            return
        with self._moved:
            self._layers = layers
            self._moved.notify_all()

    def end(self, step: int, *, failed: bool = False) -> None:
        """The step is over."""
        with self._moved:
            self._running, self._last = None, step
            if failed:
                self._failed[step] = None
                while len(self._failed) > REMEMBERED:
                    self._failed.pop(next(iter(self._failed)))
            self._moved.notify_all()

    def wait(self, step: int, layers: int, within_s: float, wanted: Callable[[], bool]) -> None:
        """Until `step` has stored so many layers; 0: until it is done.

        Args:
            wanted: asked now and then; once it says False, nobody waits any more.

        Raises:
            Unreached: it failed, or took too long, or is not waited for any more.
        """
        past_s = time.monotonic() + within_s
        with self._moved:
            while not self._reached(step, layers):
                if time.monotonic() >= past_s:
                    raise Unreached(f"step {step} was not done within {within_s:.0f} s")
                if not wanted():
                    raise Unreached(f"nobody waits for step {step} any more")
                self._moved.wait(0.05)
            if step in self._failed:
                raise Unreached(f"step {step} failed")

    def _reached(self, step: int, layers: int) -> bool:
        return self._last >= step or (self._running == step and 0 < layers <= self._layers)
