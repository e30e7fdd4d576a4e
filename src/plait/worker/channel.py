"""`Channel`: one authenticated connection between two workers, msgpack and bytes, never pickle.

Who connects sends its name and a nonce, who accepts answers with a nonce; from these, the names of both and
the run's secret each way gets a key of its own. A frame is

    body length (4 bytes), payload length (4 bytes), MAC (32 bytes), body, payload

where body is msgpack of `(kind, record)` and the MAC is keyed BLAKE2b over the frame's number, its lengths,
body and payload. So a frame can be neither forged, left out nor replayed; whoever lacks the secret gets no
further than the first frame. All lengths are bounded before anything is read.
"""

import contextlib
import hashlib
import hmac
import secrets
import select
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import msgspec
import numpy as np

from plait.kernels.transfer import Bytes
from plait.spec.errors import ServiceError
from plait.spec.step import Extent
from plait.worker.config import Way
from plait.worker.layout import Interval
from plait.worker.wire import MALFORMED

MAC_BYTES = 32
NONCE_BYTES = 16
LARGEST_NAME_BYTES = 64
LARGEST_BODY_BYTES = 1 << 20
LARGEST_PAYLOAD_BYTES = 64 << 20
SLICE_S = 0.05
"""A wait looks this often whether it is still wanted."""
SHORTEST_NAP_S, LONGEST_NAP_S = 50e-6, 1e-3
"""So long sleeps who has something to tend, at first and after a while."""
_LENGTHS = struct.Struct(">II")


class LinkError(ServiceError):
    """A connection to another worker broke, went silent, or said what no worker would say."""


@dataclass(frozen=True, slots=True)
class Open:
    """Target to source, first: what it keeps, and where bytes may be left for it. Said again, with another
    way, until one is reached."""

    form: str
    element: str
    way: Way
    where: bytes
    """What its way needs to be reached: see the landing of each."""
    places: int
    place_bytes: int
    """Room for one part."""


@dataclass(frozen=True, slots=True)
class Opened:
    """Source to target: what it keeps, and whether it can reach the target so."""

    form: str
    reached: bool
    refusal: str = ""
    """Why it will never answer."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Target to source: some tokens of some layers and heads, please."""

    number: int
    layers: Interval
    heads: Interval
    """Both empty: nothing but to know that `after` is done."""
    extents: tuple[Extent, ...]
    """Slots of the source."""
    whole: bool
    """In the form of blocks."""
    place: int
    """Of the landing."""
    after: int | None = None
    """Not before this step has stored these layers; without layers, not before it is done."""


@dataclass(frozen=True, slots=True)
class Given:
    """Source to target: here it is, at its place or as this frame's payload."""

    number: int
    count: int
    """Bytes."""
    sums: tuple[int, int] | None
    """Checksum of them; None: not asked for."""


@dataclass(frozen=True, slots=True)
class Denied:
    """Source to target: it will not be given, and why."""

    number: int
    reason: str


@dataclass(frozen=True, slots=True)
class Attach:
    """Member of a group to another one, first: this connection is for what it will send."""

    name: bytes
    """Who it is."""
    where: bytes
    """Name of a file of shared memory with a passage; empty: there is none."""
    room_bytes: int
    """Of the passage, without its counters."""


@dataclass(frozen=True, slots=True)
class Attached:
    """The answer: whether it can reach the passage; else frames are sent."""

    shared: bool


@dataclass(frozen=True, slots=True)
class Passed:
    """Member to member: bytes of a turn, in order, as this frame's payload."""

    turn: int
    over: bool = False
    """There will be no more of this turn and those before."""


@dataclass(frozen=True, slots=True)
class Parted:
    """Source to target, last: nothing is on its way any more."""


Letter = Open | Opened | Ask | Given | Denied | Parted | Attach | Attached | Passed


class Channel:
    """One end. Not thread-safe."""

    def __init__(self, sock: socket.socket, peer: str, send_key: bytes, receive_key: bytes) -> None:
        """`peer`: its name, for errors."""
        self.peer = peer
        self._socket = sock
        self._keys = send_key, receive_key
        self._sent = self._seen = 0
        self._encoder = msgspec.msgpack.Encoder()
        self._envelope = msgspec.msgpack.Decoder(tuple[str, msgspec.Raw])
        self._decoders = {kind.__name__: msgspec.msgpack.Decoder(kind) for kind in get_args(Letter)}

    def send(self, letter: Letter, payload: Bytes | None = None, within_s: float = 10.0) -> None:
        """Send a letter, and bytes with it. Raises LinkError."""
        body = self._encoder.encode((type(letter).__name__, letter))
        data = b"" if payload is None else memoryview(payload)
        lengths = _LENGTHS.pack(len(body), len(data))
        mac = _mac(self._keys[0], self._sent, lengths, body, data)
        self._sent += 1
        try:
            self._socket.settimeout(within_s)
            self._socket.sendall(lengths + mac + body)
            if len(data):
                self._socket.sendall(data)
        except OSError as error:
            raise self._broken("send", error) from error

    def receive(self, within_s: float) -> tuple[Letter, Bytes]:
        """The next letter, and the bytes that came with it.

        Raises:
            LinkError: it does not come in time, is too long, forged or malformed.
        """
        try:
            self._socket.settimeout(within_s)
            lengths = _read(self._socket, _LENGTHS.size)
            body_bytes, payload_bytes = _LENGTHS.unpack(lengths)
            if body_bytes > LARGEST_BODY_BYTES or payload_bytes > LARGEST_PAYLOAD_BYTES:
                raise LinkError(f"{self.peer} sent a frame of {body_bytes} and {payload_bytes} bytes")
            mac, body = _read(self._socket, MAC_BYTES), _read(self._socket, body_bytes)
            payload = _read(self._socket, payload_bytes)
        except OSError as error:
            raise self._broken("receive", error) from error
        if not hmac.compare_digest(mac, _mac(self._keys[1], self._seen, lengths, body, payload)):
            raise LinkError(
                f"a frame of {self.peer} is not signed with this run's secret, or not the next one"
            )
        self._seen += 1
        try:
            kind, raw = self._envelope.decode(body)
            return self._decoders[kind].decode(raw), np.frombuffer(payload, np.uint8)
        except MALFORMED as error:
            raise LinkError(f"a frame of {self.peer} is malformed: {error}") from error

    def ready(
        self,
        within_s: float,
        wanted: Callable[[], bool] = lambda: True,
        tend: Callable[[], None] | None = None,
    ) -> bool:
        """Wait until something can be received, the other end is gone, or nobody wants it any more (False).

        Args:
            tend: what has to be called often meanwhile.

        Raises:
            LinkError: nothing came in time.
        """
        past_s = time.monotonic() + within_s
        nap_s = SHORTEST_NAP_S
        while wanted():
            if self.readable(SLICE_S if tend is None else 0):
                return True
            if tend is not None:
                tend()
                time.sleep(nap_s)
                nap_s = min(2 * nap_s, LONGEST_NAP_S)
            if time.monotonic() >= past_s:
                raise LinkError(f"{self.peer} said nothing for {within_s:.1f} s")
        return False

    def readable(self, within_s: float) -> bool:
        """Something can be received, or the other end is gone."""
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        return bool(poller.poll(within_s * 1000))

    def hang_up(self) -> None:
        """Say nothing more; the other end may."""
        with contextlib.suppress(OSError):  # it is gone already
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Break the connection."""
        self._socket.close()

    def _broken(self, doing: str, error: OSError) -> LinkError:
        return LinkError(f"{doing} with {self.peer}: {str(error) or type(error).__name__}")


def connect(address: str, secret: bytes, ours: bytes, theirs: bytes, within_s: float) -> Channel:
    """The end of a worker (`ours`) that pulls from another one (`theirs`) at host:port. Raises LinkError."""
    host, _, port = address.rpartition(":")
    peer = f"worker {theirs.decode()} at {address}"
    try:
        sock = socket.create_connection((host, int(port)), timeout=within_s)
    except OSError as error:
        raise LinkError(f"connect to {peer}: {error}") from error
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        nonce = secrets.token_bytes(NONCE_BYTES)
        sock.sendall(bytes([len(ours)]) + ours + nonce)
        keys = _keys(secret, ours, theirs, nonce, _read(sock, NONCE_BYTES))
    except OSError as error:
        sock.close()
        raise LinkError(f"greet {peer}: {error}") from error
    return Channel(sock, peer, *keys)


def accept(sock: socket.socket, secret: bytes, ours: bytes, within_s: float) -> Channel:
    """The other end, of a connection that was just made. Raises LinkError; `sock` stays the caller's then."""
    try:
        sock.settimeout(within_s)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        length = _read(sock, 1)[0]
        if not 0 < length <= LARGEST_NAME_BYTES:
            raise LinkError(f"somebody greets with a name of {length} bytes")
        theirs, nonce = _read(sock, length), _read(sock, NONCE_BYTES)
        mine = secrets.token_bytes(NONCE_BYTES)
        sock.sendall(mine)
    except OSError as error:
        raise LinkError(f"somebody broke off a greeting: {error}") from error
    asks, answers = _keys(secret, bytes(theirs), ours, bytes(nonce), mine)
    return Channel(sock, f"worker {bytes(theirs)!r}", answers, asks)


def _keys(secret: bytes, target: bytes, source: bytes, nonce: bytes, other: bytes) -> tuple[bytes, bytes]:
    """For what the target sends, and for what the source sends."""
    told = b"|".join((target, source, nonce, other))
    ways = b"asks", b"answers"
    asks, answers = (hashlib.blake2b(told, key=secret[:64], person=b"link " + way).digest() for way in ways)
    return asks, answers


def _mac(key: bytes, number: int, *parts: bytes | bytearray | memoryview) -> bytes:
    state = hashlib.blake2b(number.to_bytes(8), digest_size=MAC_BYTES, key=key)
    for part in parts:
        state.update(part)
    return state.digest()


def _read(sock: socket.socket, count: int) -> bytearray:
    """Exactly so many bytes. Raises OSError, also where the other end is gone before."""
    data = bytearray(count)
    view = memoryview(data)
    while view:
        got = sock.recv_into(view)
        if not got:
            raise ConnectionError("the other end is gone")
        view = view[got:]
    return data
