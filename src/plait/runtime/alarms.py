"""`Alarms`: calls at a time that is kept to a tenth of a millisecond.

An event loop's own timers are those of its selector, in whole milliseconds and rounded up, so that paced
answers would be late by half a millisecond. Here a thread waits, and wakes the loop.
"""

import asyncio
import heapq
import threading
from collections.abc import Callable
from itertools import count


class Alarm:
    """One call that is due."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self.over = False
        """It has rung, or is not wanted any more."""

    def cancel(self) -> None:
        """Do not ring, if it has not rung yet."""
        self.over = True

    def ring(self) -> None:
        """Call, unless it was cancelled meanwhile."""
        if not self.over:
            self.over = True
            self._ring()


class Alarms:
    """Used from one event loop, in whose thread all calls are made, in the order of their times."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._due: list[tuple[float, int, Alarm]] = []
        self._numbers = count()
        self._changed = threading.Condition()
        self._closed = False

    def at(self, due_s: float, ring: Callable[[], None]) -> Alarm:
        """Call `ring` at `due_s` of the loop's time, or soon if that has passed."""
        alarm = Alarm(ring)
        with self._changed:
            if self._loop is None:
                self._loop = asyncio.get_running_loop()
                threading.Thread(target=self._wait, name="alarms", daemon=True).start()
            heapq.heappush(self._due, (due_s, next(self._numbers), alarm))
            if self._due[0][2] is alarm:
                self._changed.notify()
        return alarm

    def close(self) -> None:
        """Ring no more."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _wait(self) -> None:
        loop = self._loop
        assert loop is not None
        with self._changed:
            while not self._closed:
                if not self._due:
                    self._changed.wait()
                elif (left_s := self._due[0][0] - loop.time()) > 0:
                    self._changed.wait(left_s)
                else:
                    loop.call_soon_threadsafe(heapq.heappop(self._due)[2].ring)
