"""Messages between a driver and its workers: msgpack over ZeroMQ, signed, never pickle.

A frame is `mac + body`; body is msgpack of `(sequence, kind, record)`. The MAC is keyed BLAKE2b over
the body. Its key is derived from the run's secret for each worker, epoch and direction, and `sequence`
rises by one, so that a frame can be neither forged nor left out unseen, nor replayed: not later on its
connection, nor on another one, nor to its sender. An empty secret is refused.
"""

import hashlib
import hmac
from dataclasses import dataclass
from typing import get_args

import msgspec

from plait.spec.adapter import Adapter
from plait.spec.errors import ServiceError
from plait.spec.move import Move
from plait.spec.sampling import Draw, Opened
from plait.spec.step import Step
from plait.worker.layout import Shard

MAC_BYTES = 32
LARGEST_FRAME_BYTES = 256 << 20
MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError)
"""What decoding a body can raise; KeyError: of a kind that there is not."""


class WireError(ServiceError):
    """A frame that is not what the other side would send."""


@dataclass(frozen=True, slots=True)
class Source:
    """A worker to pull from."""

    identity: bytes
    """Instance and epoch."""
    address: str
    """host:port of its `Lender`."""
    shard: Shard
    """What it holds of every request."""


@dataclass(frozen=True, slots=True)
class Order:
    """Driver to worker: carry out a step."""

    step: Step
    opened: tuple[Opened, ...] = ()
    """State of the rows that the step opens."""
    members: tuple[Source, ...] = ()
    """All workers of the step's group that are up, where it has several instances."""


@dataclass(frozen=True, slots=True)
class Pull:
    """Driver to the target's worker: copy this worker's share of a move."""

    move: Move
    sources: tuple[Source, ...]
    """The workers of the source."""
    turn: int = 0
    """Which of several sources of the same is asked first: the target's workers differ in it."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Driver to the target's worker: answer this move soon, whatever has come of it."""

    move: int
    reason: str


@dataclass(frozen=True, slots=True)
class Load:
    """Driver to worker, which has no open rows: take the weights of another version."""

    version: int
    folder: str
    """config.json and weights."""
    files: dict[str, str]
    """File of weights -> checksum of what whoever wrote it had in memory."""


@dataclass(frozen=True, slots=True)
class Adapt:
    """Driver to worker: have an adapter before the next order."""

    adapter: Adapter


@dataclass(frozen=True, slots=True)
class Unadapt:
    """Driver to worker: no order from now on computes a row with this adapter."""

    number: int


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
    address: str
    """host:port where other workers pull from it."""
    shard: Shard
    """What it holds of every request."""


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
class Pulled:
    """Worker to driver: its share of a move is here."""

    move: int
    wire_bytes: int
    """That were copied between workers."""
    begin_ns: int
    """When its copying began, by the worker's monotonic clock."""
    busy_ns: int
    """Time that it took."""


@dataclass(frozen=True, slots=True)
class PullFault:
    """Worker to driver: its share of a move is not complete, and nothing of it is under way any more."""

    move: int
    reason: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """Worker to driver: from now on it computes with these weights."""

    version: int


@dataclass(frozen=True, slots=True)
class LoadFault:
    """Worker to driver: these weights cannot be used, and why. It keeps those it had."""

    version: int
    reason: str


@dataclass(frozen=True, slots=True)
class HasAdapter:
    """Worker to driver: it has this adapter."""

    number: int


@dataclass(frozen=True, slots=True)
class LacksAdapter:
    """Worker to driver: it cannot have this adapter, and why."""

    number: int
    reason: str


@dataclass(frozen=True, slots=True)
class Beat:
    """Worker to driver: still alive."""


Message = (
    Order
    | Pull
    | Drop
    | Load
    | Adapt
    | Unadapt
    | Quit
    | Hello
    | Refusal
    | Answer
    | Fault
    | Pulled
    | PullFault
    | Loaded
    | LoadFault
    | HasAdapter
    | LacksAdapter
    | Beat
)


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
        self._decoders = {kind.__name__: msgspec.msgpack.Decoder(kind) for kind in get_args(Message)}

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
        except MALFORMED as error:
            raise WireError(f"a frame is malformed: {error}") from error
        if sequence != self._seen + 1:
            raise WireError(f"frame {sequence} follows frame {self._seen}")
        self._seen = sequence
        return message


def _mac(key: bytes, body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=MAC_BYTES, key=key).digest()
