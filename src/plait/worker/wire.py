"""Messages between a driver and its workers: msgpack over ZeroMQ, signed, never pickle.

A frame is `mac + body`; body is msgpack of `(sequence, kind, record)`. The MAC is keyed BLAKE2b over
the body under the run's secret, and `sequence` rises by one in each direction, so that a frame can
be neither forged nor replayed nor left out unseen. An empty secret is refused.
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
    """One direction pair of one connection: signs what goes out, checks what comes in."""

    def __init__(self, secret: bytes) -> None:
        """Raises ValueError for a secret under 16 bytes: without one anybody could give orders."""
        if len(secret) < 16:
            raise ValueError("the run's secret must have at least 16 bytes")
        self._secret = secret
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
        return self._mac(body) + body

    def decode(self, frame: bytes) -> Message:
        """The message in the next frame received.

        Raises:
            WireError: the frame is not signed with the secret, not the next one, or malformed.
        """
        mac, body = frame[:MAC_BYTES], frame[MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(body)):
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

    def _mac(self, body: bytes) -> bytes:
        return hashlib.blake2b(body, digest_size=MAC_BYTES, key=self._secret[:64]).digest()
