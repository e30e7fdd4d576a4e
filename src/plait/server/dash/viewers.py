"""`Viewers`: who looks at the dashboard. Each has a short queue, and a slow one loses sheets.

Nobody waits for a viewer. Nothing is drawn up while nobody looks.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
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
        """Never waits: where the queue is full, the oldest sheet goes."""
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
        viewer.show(self._sheet(self.source.sheet))
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

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self._period_s)
            try:
                await self.source.refresh()
                sheet = self._sheet(self.source.sheet)
            except PlaitError as error:
                for viewer in self._viewers:
                    viewer.show(self.source.failed(str(error)))
                return
            if sheet != self._last:
                self._last = sheet
                for viewer in self._viewers:
                    viewer.show(sheet)

    def _sheet(self, draw: Callable[[], bytes]) -> bytes:
        """What a fault of ours in drawing costs is the picture, not the stream."""
        try:
            return draw()
        except PlaitError:
            raise
        except Exception:
            log.exception("the dashboard could not be drawn")
            return self.source.failed("the dashboard could not be drawn; the server's log says why")
