"""`Viewers`: who looks at the dashboard. Each has a short queue, and a slow one loses sheets.

Nobody waits for a viewer. Nothing is drawn up while nobody looks.
"""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from plait.server.errors import Refusal
from plait.spec.errors import PlaitError

log = logging.getLogger("plait.server.dash")
QUEUED = 2
"""Sheets that wait for a viewer."""
MOST = 32
"""Viewers at a time."""


class Source(Protocol):
    """Where sheets come from: a running engine, or what a run left behind."""

    async def refresh(self) -> None:
        """Take in what is new. Called about every `period_s`, while somebody looks."""

    def sheet(self) -> bytes:
        """The present one, as JSON."""

    def past(self, at_us: int) -> bytes:
        """The one of an earlier moment.

        Raises:
            UserError: there is none.
        """

    def failed(self, reason: str) -> bytes:
        """The last one, which says why no other comes."""


class Viewer:
    """One open stream."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[bytes] = asyncio.Queue(QUEUED)
        self.missed = 0
        """Sheets that it was too slow for."""

    def show(self, sheet: bytes) -> None:
        """Never waits: where the queue is full, the oldest sheet goes. An empty one is the last."""
        if self.queue.full():
            self.queue.get_nowait()
            self.missed += 1
        self.queue.put_nowait(sheet)


class Viewers:
    """Draws up a sheet for all of them at a time. Lives in one event loop."""

    def __init__(self, source: Source, period_s: float = 0.5) -> None:
        self.source = source
        self._period_s = period_s
        self._viewers: dict[Viewer, None] = {}
        self._last = b""
        self._ticking: asyncio.Task[None] | None = None

    @property
    def count(self) -> int:
        """How many watch now."""
        return len(self._viewers)

    @contextmanager
    def watching(self) -> Iterator[Viewer]:
        """One more, until the block ends.

        Raises:
            Refusal: there are enough.
        """
        if len(self._viewers) >= MOST:
            raise Refusal(503, f"{MOST} viewers watch already; close one of them", {"retry-after": "5"})
        viewer = Viewer()
        viewer.show(self.source.sheet())
        self._viewers[viewer] = None
        if self._ticking is None:
            self._ticking = asyncio.get_running_loop().create_task(self._tick())
        try:
            yield viewer
        finally:
            del self._viewers[viewer]
            if not self._viewers and self._ticking is not None:
                self._ticking.cancel()
                self._ticking = None

    def close(self) -> None:
        """The server ends: so do all streams."""
        for viewer in self._viewers:
            viewer.show(b"")

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self._period_s)
            sheet, more = await self._next()
            if sheet != self._last:
                self._last = sheet
                for viewer in self._viewers:
                    viewer.show(sheet)
            if not more:
                return

    async def _next(self) -> tuple[bytes, bool]:
        """The next sheet, and whether others may follow."""
        try:
            await self.source.refresh()
            return self.source.sheet(), True
        except PlaitError as error:
            return self.source.failed(str(error)), False
        except Exception:
            log.exception("the dashboard cannot go on")
            return self.source.failed("the dashboard cannot go on; the server's log says why"), False
