"""`Hub`: the driver's end of all worker connections, one ZeroMQ ROUTER socket."""

import asyncio
import logging
from collections.abc import Callable

import zmq

from plait.worker.wire import LARGEST_FRAME_BYTES, Codec, Message, WireError

log = logging.getLogger(__name__)


MOST_AT_ONCE = 64
"""Messages that are read before others in the event loop have their turn."""


class Hub:
    """Sends to and receives from workers by identity (instance, epoch). Frames of identities that
    are not expected, or that are not signed, are dropped with a line in the log.

    The event loop watches ZeroMQ's descriptor, which tells only that something has changed, and not again
    before everything was read: so all is read each time, also after a send, which may have taken the sign
    away. pyzmq's own loop makes a future of each message, at a third of what a step costs its driver.
    """

    def __init__(self, secret: bytes, interface: str = "127.0.0.1") -> None:
        self._secret = secret
        self._codecs: dict[bytes, Codec] = {}
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.MAXMSGSIZE, LARGEST_FRAME_BYTES)
        self._socket.setsockopt(zmq.LINGER, 0)
        port = self._socket.bind_to_random_port(f"tcp://{interface}")
        self.address = f"tcp://{interface}:{port}"
        """Where workers connect."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._heard: Callable[[bytes, Message], None] | None = None
        self._reading = False
        """Somebody reads, or will soon."""

    def start(self, heard: Callable[[bytes, Message], None]) -> None:
        """Call `heard(identity, message)` for every message from now on."""
        self._heard, self._loop = heard, asyncio.get_running_loop()
        self._loop.add_reader(self._socket.fileno(), self._read)
        self._look()

    def expect(self, identity: bytes) -> None:
        """A worker of this identity may connect."""
        self._codecs[identity] = Codec(self._secret, identity, worker=False)

    def forget(self, identity: bytes) -> None:
        """Messages of this worker count no more."""
        self._codecs.pop(identity, None)

    def send(self, identity: bytes, message: Message) -> None:
        """Send without waiting: ZeroMQ queues in memory, and the scheduler bounds what is in flight."""
        # A ROUTER never waits: what it cannot deliver to a worker that died is dropped.
        self._socket.send_multipart([identity, self._codecs[identity].encode(message)], zmq.NOBLOCK)
        self._look()

    def close(self) -> None:
        """Stop reading and close the socket; a start that is given up closes it before its owner does."""
        if self._socket.closed:
            return
        if self._loop is not None:
            self._loop.remove_reader(self._socket.fileno())
        self._heard = None
        self._socket.close()
        self._context.term()

    def _look(self) -> None:
        """Read soon, if there is something and nobody is about to."""
        if self._loop is not None and not self._reading and self._socket.getsockopt(zmq.EVENTS) & zmq.POLLIN:
            self._reading = True
            self._loop.call_soon(self._read)

    def _read(self) -> None:
        self._reading = True
        try:
            for _ in range(MOST_AT_ONCE):
                if self._heard is None:
                    return
                self._take(*self._socket.recv_multipart(zmq.NOBLOCK))
        except zmq.Again:
            return
        finally:
            self._reading = False
            if self._heard is not None:
                self._look()

    def _take(self, identity: bytes, *frames: bytes) -> None:
        codec = self._codecs.get(identity)
        if codec is None or len(frames) != 1:
            log.warning("dropped %d frames of %r, which are not expected", len(frames), identity)
            return
        try:
            message = codec.decode(frames[0])
        except WireError as error:
            log.warning("dropped a frame of %r: %s", identity, error)
            return
        assert self._heard is not None, "nobody hears"
        self._heard(identity, message)
