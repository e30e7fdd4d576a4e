"""Messages between a driver and its workers: msgpack over ZeroMQ, signed, never pickle.

A frame is `mac + body`; body is msgpack of `(sequence, kind, record)`. The MAC is keyed BLAKE2b over
the body. Its key is derived from the run's secret for each worker, epoch and direction, and `sequence`
rises by one, so that a frame can be neither forged nor left out unseen, nor replayed: not later on its
connection, nor on another one, nor to its sender. An empty secret is refused.
"""

import hashlib
import hmac
from dataclasses import dataclass

import msgspec

from plait.spec.errors import ServiceError
from plait.spec.sampling import Draw, Opened
from plait.spec.step import Step

MAC_BYTES = 32
LARGEST_FRAME_BYTES = 256 << 20


class WireError(ServiceError):
    """A frame that is not what the other side would send."""


@dataclass(frozen=True, slots=True)
class Order:
    """Driver to worker: carry out a step."""

    step: Step
    opened: tuple[Opened, ...] = ()
    """State of the rows that the step opens."""


@dataclass(frozen=True, slots=True)
class Quit:
    """Driver to worker: finish what you have and leave."""


@dataclass(frozen=True, slots=True)
class Hello:
    """Worker to driver, once: ready."""

    slots: int
    """KV pool, in tokens."""
    kernels: str
    """Which kernels are in use, in words."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Worker to driver instead of Hello: this can never work, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Answer:
    """Worker to driver: what a step drew."""

    step: int
    draws: tuple[Draw, ...]
    begin_ns: int
    """When the worker began with the step, by its host's monotonic clock."""
    busy_ns: int
    """Time that the step took on the worker."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Worker to driver: a step could not be carried out; its rows are forgotten."""

    step: int
    reason: str


@dataclass(frozen=True, slots=True)
class Beat:
    """Worker to driver: still alive."""


Message = Order | Quit | Hello | Refusal | Answer | Fault | Beat


class Codec:
    """One end of one connection: signs what goes out, checks what comes in."""

    def __init__(self, secret: bytes, identity: bytes, *, worker: bool) -> None:
        """The end of the worker with this identity, or the driver's end of the same connection.

        Raises:
            ValueError: the secret is under 16 bytes; without one anybody could give orders.
        """
        if len(secret) < 16:
            raise ValueError("the run's secret must have at least 16 bytes")
        orders, answers = (
            hashlib.blake2b(identity, key=secret[:64], person=way).digest() for way in (b"orders", b"answers")
        )
        self._send_key, self._receive_key = (answers, orders) if worker else (orders, answers)
        self._sent = 0
        self._seen = 0
        self._encoder = msgspec.msgpack.Encoder()
        self._envelope = msgspec.msgpack.Decoder(tuple[int, str, msgspec.Raw])
        kinds: tuple[type[Message], ...] = (Order, Quit, Hello, Refusal, Answer, Fault, Beat)
        self._decoders = {kind.__name__: msgspec.msgpack.Decoder(kind) for kind in kinds}

    def encode(self, message: Message) -> bytes:
        """The next frame to send."""
        self._sent += 1
        body = self._encoder.encode((self._sent, type(message).__name__, message))
        return _mac(self._send_key, body) + body

    def decode(self, frame: bytes) -> Message:
        """The message in the next frame received.

        Raises:
            WireError: the frame is not signed with the secret, not the next one, or malformed.
        """
        mac, body = frame[:MAC_BYTES], frame[MAC_BYTES:]
        if not hmac.compare_digest(mac, _mac(self._receive_key, body)):
            raise WireError("a frame is not signed with this run's secret")
        try:
            sequence, kind, raw = self._envelope.decode(body)
            message = self._decoders[kind].decode(raw)
        except (msgspec.DecodeError, KeyError) as error:
            raise WireError(f"a frame is malformed: {error}") from error
        if sequence != self._seen + 1:
            raise WireError(f"frame {sequence} follows frame {self._seen}")
        self._seen = sequence
        return message


def _mac(key: bytes, body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=MAC_BYTES, key=key).digest()
