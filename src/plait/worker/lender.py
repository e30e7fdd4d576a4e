"""`Lender`: gives a worker's KV to the peers that ask for it: the source's side of every link.

    peer connects --> greeting --> Open --> Ask, Ask, ... --> Given, Given, ...
                                                `-- waits for the step that writes it, copies, sums up

It keeps nothing between two asks but the link: an ask may be made again. Slots are pinned by the core for as
long as anybody may ask for them.
"""

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from plait.kernels import transfer
from plait.worker.channel import (
    LARGEST_PAYLOAD_BYTES,
    Ask,
    Attach,
    Channel,
    Denied,
    Given,
    Letter,
    LinkError,
    Open,
    Opened,
    Parted,
    accept,
)
from plait.worker.progress import Progress, Unreached
from plait.worker.store import Store, StoreError
from plait.worker.way import Reach, Ways

log = logging.getLogger(__name__)

MOST_LINKS = 256
"""Connections at a time; further ones are closed at once."""


class Lender:
    """Listens; each link has a thread of its own, which copies while the compute lane works."""

    def __init__(
        self,
        ways: Ways,
        store: Store,
        progress: Progress,
        secret: bytes,
        name: bytes,
        interface: str,
        attach: Callable[[Channel, Attach], None] | None = None,
    ) -> None:
        """`name`: this worker's identity; `interface`: address to listen on; `attach`: takes connections of
        members of a group."""
        self._attach = attach
        self._config, self._ways, self._store, self._progress = ways.config, ways, store, progress
        self._secret, self._name = secret, name
        self._listener = socket.create_server((interface, 0), backlog=64)
        self.address = f"{interface}:{self._listener.getsockname()[1]}"
        """Where peers connect."""
        self._closed = threading.Event()
        self._links = threading.BoundedSemaphore(MOST_LINKS)
        self._thread = threading.Thread(target=self._listen, name="lender", daemon=True)

    def start(self) -> None:
        """Take connections from now on."""
        self._thread.start()

    def close(self) -> None:
        """Take no more; links end with their next ask."""
        self._closed.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes who waits for a connection
        self._listener.close()
        self._thread.join(timeout=5)

    def _listen(self) -> None:
        while not self._closed.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError as error:
                if self._closed.is_set():
                    return
                log.warning("a connection was not taken: %s", error)
                continue
            if self._links.acquire(blocking=False):
                threading.Thread(target=self._serve, args=(sock,), name="lend", daemon=True).start()
            else:
                sock.close()

    def _serve(self, sock: socket.socket) -> None:
        """One link, from its greeting to its end."""
        kept = False
        try:
            channel = accept(sock, self._secret, self._name, self._config.patience_s)
            letter, _ = channel.receive(self._config.patience_s)
            if isinstance(letter, Attach) and self._attach is not None:
                self._attach(channel, letter)
                kept = True
            elif (reach := self._open(channel, letter)) is not None:
                self._give(channel, reach)
        except LinkError as error:
            log.info("a link ended: %s", error)
        finally:
            if not kept:
                sock.close()
            self._links.release()

    def _open(self, channel: Channel, letter: Letter) -> Reach | None:
        """How the peer is reached; None: they do not understand each other."""
        while True:
            if not isinstance(letter, Open):
                raise LinkError(f"{channel.peer} begins with {type(letter).__name__}")
            refusal, reach = "", None
            if letter.element != self._store.element:
                refusal = f"it keeps {self._store.element}, not {letter.element}"
            elif not 0 < letter.place_bytes <= LARGEST_PAYLOAD_BYTES:
                refusal = f"parts of {letter.place_bytes} bytes are too large"
            else:
                reach = self._ways.reach(letter)
            opened = Opened(self._store.form, reach is not None, refusal)
            channel.send(opened, within_s=self._config.patience_s)
            if refusal or reach is not None:
                return reach
            letter, _ = channel.receive(self._config.patience_s)

    def _give(self, channel: Channel, reach: Reach) -> None:
        """Until the link ends; and let the peer know where it may count on nothing coming any more."""
        try:
            self._answer_all(channel, reach)
        finally:
            reach.close()
            with contextlib.suppress(LinkError):  # it hears no more
                channel.send(Parted(), within_s=self._config.patience_s)

    def _answer_all(self, channel: Channel, reach: Reach) -> None:
        """Until the peer is gone, or has asked for nothing during a lease."""
        free_s = time.monotonic()
        while not self._closed.is_set():
            channel.ready(self._config.lease_s, lambda: not self._closed.is_set())
            ask, _ = channel.receive(self._config.patience_s)
            if not isinstance(ask, Ask):
                raise LinkError(f"{channel.peer} says {type(ask).__name__} instead of asking")
            try:
                room = reach.room(ask.place)
                given = self._given(ask, room)
            except (StoreError, Unreached, IndexError) as error:
                channel.send(Denied(ask.number, str(error)), within_s=self._config.patience_s)
                continue
            free_s = self._throttle(free_s, given.count)
            if self._closed.is_set():
                return
            payload = reach.deliver(ask.number, ask.place, given.count)
            channel.send(given, payload, within_s=self._config.patience_s)

    def _given(self, ask: Ask, room: transfer.Bytes) -> Given:
        if ask.after is not None:
            layers = ask.layers.past - self._store.shard.layers.first if ask.layers else 0
            self._progress.wait(ask.after, layers, self._config.lease_s, lambda: not self._closed.is_set())
        if not ask.layers:
            return Given(ask.number, 0, None)
        slots_T = _slots(ask, self._store.pool.slots)
        count = self._store.copy(ask.layers, ask.heads, slots_T, room, whole=ask.whole, out=True)
        sums = transfer.checksum(room[:count]) if self._config.checksum else None
        return Given(ask.number, count, sums)

    def _throttle(self, free_s: float, count: int) -> float:
        """Wait until the link may carry so many bytes more; returns when it is free again."""
        if self._config.bytes_per_s is None:
            return free_s
        free_s = max(free_s, time.monotonic()) + count / self._config.bytes_per_s
        self._closed.wait(max(0.0, free_s - time.monotonic()))
        return free_s


def _slots(ask: Ask, most: int) -> NDArray[np.int32]:
    """The slots of an ask. Raises StoreError: more than the pool has."""
    inside = all(0 <= e.slot <= most and 0 <= e.count <= most - e.slot for e in ask.extents)
    if not inside or sum(extent.count for extent in ask.extents) > most:
        raise StoreError(f"an ask names slots that this pool of {most} does not have")
    runs = [np.arange(e.slot, e.slot + e.count, dtype=np.int32) for e in ask.extents]
    return np.concatenate(runs) if runs else np.empty(0, np.int32)
