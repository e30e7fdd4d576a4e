"""`Outlet` and `Inlet`: the two ends of a link from one member of a group to another, one way.

    outlet --greeting, Attach--> lender of the peer --> inlet
    bytes: through a passage in shared memory, or signed frames where the hosts share none

The connection stays: it breaks when either end dies, and that is how the other one learns of it.
"""

import queue
import threading
from typing import Any

import numpy as np

from plait.kernels import exchange
from plait.kernels.transfer import Bytes
from plait.worker.channel import Attach, Attached, Channel, LinkError, Passed
from plait.worker.ring import Ring

FRAME_BYTES = 1 << 20
"""Most that one frame carries."""


class Shared:
    """One end of a passage. The ring has one place: the passage."""

    def __init__(self, channel: Channel, ring: Ring, room_bytes: int, turn: int, *, writer: bool) -> None:
        """`turn`: what this end is past already."""
        self.channel, self._writer = channel, writer
        self._memory = ring.room(0)
        self._place = self._memory.ctypes.data, room_bytes
        self.leave(turn)

    @property
    def alive(self) -> bool:
        """The other end is there: nothing is ever said on the connection but its end."""
        return not self.channel.readable(0)

    def flow(self, address: int, count: int) -> tuple[int, ...]:
        """A row of `plait.kernels.exchange.FLOW`."""
        return (*self._place, int(self._writer), address, count, 0)

    def leave(self, turn: int) -> None:
        """Done with a turn, or it is abandoned."""
        exchange.pass_turn(self._place[0], turn, writer=self._writer)

    def close(self) -> None:
        """Break the connection."""
        self.channel.close()


class Sender:
    """The outlet of a link without shared memory: a thread sends, so that nobody waits for a slow reader."""

    def __init__(self, channel: Channel, patience_s: float, turn: int) -> None:
        self.channel, self._patience_s = channel, patience_s
        self._failed: str | None = None
        self._queue: queue.SimpleQueue[tuple[Passed, Bytes] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="send", daemon=True).start()
        self.leave(turn)

    @property
    def alive(self) -> bool:
        """The other end takes what is sent."""
        return self._failed is None and not self.channel.readable(0)

    def send(self, turn: int, data: Bytes) -> None:
        """Send bytes of a turn, soon; `data` is free at once."""
        for begin in range(0, len(data), FRAME_BYTES):
            self._queue.put((Passed(turn), data[begin : begin + FRAME_BYTES].copy()))

    def leave(self, turn: int) -> None:
        """Done with a turn, or it is abandoned."""
        self._queue.put((Passed(turn, over=True), np.empty(0, np.uint8)))

    def close(self) -> None:
        """Break the connection."""
        self._queue.put(None)
        self.channel.close()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            try:
                self.channel.send(*item, within_s=self._patience_s)
            except LinkError as error:
                self._failed = str(error)
                return


class Receiver:
    """The inlet of a link without shared memory."""

    def __init__(self, channel: Channel, patience_s: float) -> None:
        self.channel, self._patience_s = channel, patience_s
        self._left: tuple[int, Bytes] = (0, np.empty(0, np.uint8))
        """Turn and bytes of a frame that was taken in part."""
        self._over = 0
        """The other end is past this turn."""

    def take(self, turn: int, into: Bytes, within_s: float) -> int:
        """Fill a part of `into`; returns how many bytes, 0 where none came in time, -1 where the other end
        has abandoned the turn. Raises LinkError."""
        theirs, data = self._left
        if theirs < turn or not len(data):
            if self._over >= turn:
                return -1
            if not self.channel.readable(within_s):
                return 0
            letter, data = self.channel.receive(self._patience_s)
            if not isinstance(letter, Passed):
                raise LinkError(f"{self.channel.peer} sends {type(letter).__name__} within a step")
            self._left = theirs, data = letter.turn, data
            if letter.over:
                self._over = letter.turn
                return 0
            if theirs < turn:
                return 0  # left behind by a turn that was abandoned
        if theirs > turn:
            return -1
        count = min(len(data), len(into))
        into[:count] = data[:count]
        self._left = theirs, data[count:]
        return count

    def leave(self, turn: int) -> None:
        """Nothing to say: frames of older turns are dropped as they come."""

    def close(self) -> None:
        """Break the connection."""
        self.channel.close()


Outlet = Shared | Sender
Inlet = Shared | Receiver


def make_outlet(
    channel: Channel, name: bytes, room_bytes: int, patience_s: float, turn: int, *, shared: bool
) -> Outlet:
    """Agree with the peer about memory. Raises LinkError."""
    ring = Ring.make(1, exchange.HEAD_BYTES + room_bytes) if shared and exchange.available() else None
    try:
        channel.send(Attach(name, ring.where if ring else b"", room_bytes), within_s=patience_s)
        answer, _ = channel.receive(patience_s)
    except LinkError:
        channel.close()
        raise
    finally:
        if ring is not None:
            ring.settled()
    if not isinstance(answer, Attached):
        channel.close()
        raise LinkError(f"{channel.peer} answers a greeting with {type(answer).__name__}")
    if ring is None or not answer.shared:
        return Sender(channel, patience_s, turn)
    return Shared(channel, ring, room_bytes, turn, writer=True)


def make_inlet(channel: Channel, attach: Attach, patience_s: float, turn: int) -> Inlet:
    """The other end, for what a peer asks. Raises LinkError."""
    ring: Any = None
    if exchange.available():
        ring = Ring.reach(attach.where, 1, exchange.HEAD_BYTES + attach.room_bytes)
    channel.send(Attached(ring is not None), within_s=patience_s)
    if ring is None:
        return Receiver(channel, patience_s)
    return Shared(channel, ring, attach.room_bytes, turn, writer=False)
