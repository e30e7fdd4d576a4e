"""`Hub`: the driver's end of all worker connections, one ZeroMQ ROUTER socket."""

import asyncio
import contextlib
import logging
from collections.abc import Callable

import zmq
import zmq.asyncio

from plait.worker.wire import LARGEST_FRAME_BYTES, Codec, Message, WireError

log = logging.getLogger(__name__)


class Hub:
    """Sends to and receives from workers by identity (instance, epoch). Frames of identities that
    are not expected, or that are not signed, are dropped with a line in the log."""

    def __init__(self, secret: bytes, interface: str = "127.0.0.1") -> None:
        self._secret = secret
        self._codecs: dict[bytes, Codec] = {}
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.MAXMSGSIZE, LARGEST_FRAME_BYTES)
        self._socket.setsockopt(zmq.LINGER, 0)
        port = self._socket.bind_to_random_port(f"tcp://{interface}")
        self.address = f"tcp://{interface}:{port}"
        """Where workers connect."""
        self._reader: asyncio.Task[None] | None = None

    def start(self, heard: Callable[[bytes, Message], None]) -> None:
        """Call `heard(identity, message)` for every message from now on."""
        self._reader = asyncio.get_running_loop().create_task(self._read(heard))

    def expect(self, identity: bytes) -> None:
        """A worker of this identity may connect."""
        self._codecs[identity] = Codec(self._secret, identity, worker=False)

    def forget(self, identity: bytes) -> None:
        """Messages of this worker count no more."""
        self._codecs.pop(identity, None)

    def send(self, identity: bytes, message: Message) -> None:
        """Send without waiting: ZeroMQ queues in memory, and the scheduler bounds what is in flight."""
        # A ROUTER never waits: what it cannot deliver to a worker that died is dropped.
        self._socket.send_multipart([identity, self._codecs[identity].encode(message)])

    async def close(self) -> None:
        """Stop reading and close the socket."""
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader
        self._socket.close()
        self._context.term()

    async def _read(self, heard: Callable[[bytes, Message], None]) -> None:
        while True:
            identity, *frames = await self._socket.recv_multipart()
            codec = self._codecs.get(identity)
            if codec is None or len(frames) != 1:
                log.warning("dropped %d frames of %r, which are not expected", len(frames), identity)
                continue
            try:
                message = codec.decode(frames[0])
            except WireError as error:
                log.warning("dropped a frame of %r: %s", identity, error)
                continue
            heard(identity, message)
