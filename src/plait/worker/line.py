"""`Line`: a worker's end of its connection to the driver, served by one thread of its own."""

import contextlib
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable

import zmq

from plait.worker.config import WorkerConfig
from plait.worker.fabric import Fabric
from plait.worker.wire import (
    LARGEST_FRAME_BYTES,
    Adapt,
    Beat,
    Codec,
    Drop,
    Load,
    Message,
    Order,
    Pull,
    Quit,
    Unadapt,
    WireError,
)

log = logging.getLogger(__name__)


class Line:
    """Brings orders in and messages out. Only its thread touches the socket.

        driver ==socket==> thread --orders--> compute lane --outbox, waker--> thread ==socket==> driver
                                `--moves--> copy lane -----------'

    It gives signs of life while the compute lane works, and calls `orphaned` when the parent is gone
    (stdin closes), so that no worker outlives its driver, or when the connection breaks or brings what the
    driver did not send: an order that was under way is lost, and nobody would miss it.
    """

    def __init__(self, config: WorkerConfig, orphaned: Callable[[], None]) -> None:
        self.orders: queue.SimpleQueue[Order | Load | Adapt | Unadapt | None] = queue.SimpleQueue()
        """Orders in the order of their ids; None: there will be no more."""
        self.fabric: Fabric | None = None
        """Takes moves; set before the driver is told that the worker is ready."""
        self._config = config
        self._orphaned = orphaned
        self._codec = Codec(bytes.fromhex(config.secret), config.identity, worker=True)
        self._outbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._wakeup, self._waker = os.pipe()
        self._thread = threading.Thread(target=self._serve, name="line", daemon=True)

    def start(self) -> None:
        """Connect, read orders and give signs of life from now on."""
        self._thread.start()

    def send(self, message: Message) -> None:
        """Send a message after those handed over before."""
        self._outbox.put(message)
        os.write(self._waker, b".")

    def close(self) -> None:
        """Send what is left, then disconnect."""
        self._outbox.put(None)
        os.write(self._waker, b".")
        self._thread.join(timeout=5)

    def _serve(self) -> None:
        context = zmq.Context()
        socket = context.socket(zmq.DEALER)
        socket.setsockopt(zmq.IDENTITY, self._config.identity)
        socket.setsockopt(zmq.MAXMSGSIZE, LARGEST_FRAME_BYTES)
        socket.setsockopt(zmq.LINGER, 1000)
        broken = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        socket.connect(self._config.address)
        try:
            self._pump(socket, broken)
        finally:
            socket.disable_monitor()
            broken.close()
            socket.close()
            context.term()

    def _pump(self, socket: zmq.Socket[bytes], broken: zmq.Socket[bytes]) -> None:
        poller = zmq.Poller()
        for source in (socket, broken, self._wakeup, sys.stdin.fileno()):
            poller.register(source, zmq.POLLIN)
        beat_s = self._config.beat_ns / 1e9
        next_beat = time.monotonic()
        while True:
            now = time.monotonic()
            if now >= next_beat:
                socket.send(self._codec.encode(Beat()))
                next_beat = now + beat_s
            ready = dict(poller.poll(max(1, int((next_beat - now) * 1000))))
            gone = sys.stdin.fileno() in ready and not os.read(sys.stdin.fileno(), 4096)
            if gone or broken in ready:
                self._orphaned()
            if self._wakeup in ready and not self._flush(socket):
                return
            if socket in ready:
                try:
                    self._receive(socket)
                except WireError as error:  # an order may be lost with it, as with the connection
                    log.error("the driver says what no driver would say: %s", error)
                    self._orphaned()
                    return

    def _flush(self, socket: zmq.Socket[bytes]) -> bool:
        """Send all that waits. False: close was asked for."""
        os.read(self._wakeup, 4096)
        with contextlib.suppress(queue.Empty):
            while (message := self._outbox.get_nowait()) is not None:
                socket.send(self._codec.encode(message))
            return False
        return True

    def _receive(self, socket: zmq.Socket[bytes]) -> None:
        with contextlib.suppress(zmq.Again):
            while True:
                message = self._codec.decode(socket.recv(zmq.NOBLOCK))
                if isinstance(message, Order | Load | Adapt | Unadapt):
                    self.orders.put(message)
                elif isinstance(message, Pull):
                    assert self.fabric is not None, "a move came before the worker was ready"
                    self.fabric.lane.pull(message)
                elif isinstance(message, Drop):
                    assert self.fabric is not None, "a move came before the worker was ready"
                    self.fabric.lane.drop(message.move, message.reason)
                elif isinstance(message, Quit):
                    self.orders.put(None)
