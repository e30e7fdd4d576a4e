"""What the ranks of a trainer are told and answer: msgpack over pipes, never pickle.

A frame is its length in 8 bytes and a record. Tensors travel as rows of numbers: those of a float32 keep all
their bits.
"""

import struct
from dataclasses import dataclass, field
from typing import BinaryIO

import msgspec

from plait.spec.errors import ServiceError
from plait.spec.schedule import Program
from plait.training.adapter import LoraConfig
from plait.training.batch import Sample
from plait.training.cut import Head
from plait.training.device import Backend
from plait.training.grid import Grid
from plait.training.losses import ValueLossConfig
from plait.training.objectives import PolicyConfig
from plait.training.pipeline import Ran
from plait.training.readings import Want

LENGTH = struct.Struct("<Q")
Rows = tuple[tuple[float, ...], ...]
"""Numbers of each sample's response tokens."""


@dataclass(frozen=True)
class OptimiserConfig:
    """How a model is trained (AdamW, arXiv 1711.05101)."""

    lr: float = 1e-6
    """Learning rate."""
    beta1: float = 0.9
    """Decay of the mean of gradients."""
    beta2: float = 0.95
    """Decay of the mean of their squares."""
    epsilon: float = 1e-8
    """Added to the root of the latter."""
    weight_decay: float = 0.0
    """Taken off the weights, times the learning rate."""
    clip_norm: float | None = 1.0
    """Largest norm of the model's gradient; None: any."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises from 0."""


@dataclass(frozen=True)
class ModelPlan:
    """One model of the trainer."""

    name: str
    folder: str
    """config.json and weights."""
    head: Head
    ranks: tuple[int, ...]
    """Who has each stage, by place in a block."""
    layers: tuple[int, ...]
    """Of each stage."""
    optimiser: OptimiserConfig | None = None
    """None: it is not trained."""
    seed: int = 0
    """Of a head that the folder lacks."""
    zero_head: bool = False
    """Such a head begins with zeros."""
    lora: LoraConfig | None = None
    """What is trained of it; None: everything."""
    adapted: str = ""
    """It is this model, whose adapter is off; nothing is loaded."""


@dataclass(frozen=True)
class RankConfig:
    """All that one rank is told when it starts."""

    rank: int
    ranks: int
    """In all: blocks follow each other."""
    block: int
    """Places of a block, which has every model once; blocks train on different samples and sum up their
    gradients (data parallel)."""
    meeting: str
    """File in which the ranks meet; nobody else knows its name."""
    models: tuple[ModelPlan, ...]
    threads: int = 1
    patience_s: float = 120.0
    """Longest wait for another rank, in seconds: no action may take longer."""
    recompute: bool = False
    """Keep activations of stages' inputs alone."""
    resume: str | None = None
    """Folder of a checkpoint."""
    tp: int = 1
    """Ranks at each place, which share every layer (tensor parallel)."""
    backend: Backend = Backend.GLOO

    @property
    def grid(self) -> Grid:
        """Who holds what."""
        return Grid(self.block, self.tp, self.ranks // self.block // self.tp)


@dataclass(frozen=True)
class Read:
    """Run models forward over samples. The last ranks of the models answer with what was read."""

    program: Program
    models: tuple[str, ...]
    """By the program's numbers."""
    wants: tuple[Want, ...]
    """Of each model."""
    micro_batches: tuple[tuple[Sample, ...], ...]
    temperature: float = 1.0


@dataclass(frozen=True)
class Experience:
    """A sample with all that is trained on; rows are as long as its response."""

    sample: Sample
    old: tuple[float, ...]
    """The Actor's log-probabilities before this iteration's first step; (): this is that step."""
    advantages: tuple[float, ...]
    reference: tuple[float, ...] = ()
    """The reference's log-probabilities, where the loss needs them."""
    weights: tuple[float, ...] = ()
    """For tokens that another program drew; (): 1."""
    values: tuple[float, ...] = ()
    """The Critic's, at rollout."""
    returns: tuple[float, ...] = ()


@dataclass(frozen=True)
class Train:
    """One optimiser step of each model named, on one mini-batch."""

    program: Program
    models: tuple[str, ...]
    """By the program's numbers; of `actor` and `critic`."""
    micro_batches: tuple[tuple[Experience, ...], ...]
    """Of this block."""
    tokens: int
    """Of all blocks' responses."""
    samples: int
    """Of all blocks."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    value: ValueLossConfig = field(default_factory=ValueLossConfig)


@dataclass(frozen=True)
class TrainPairs:
    """One optimiser step of a reward model; samples come in pairs, the chosen one first."""

    program: Program
    model: str
    micro_batches: tuple[tuple[Sample, ...], ...]
    """Of this block."""
    pairs: int
    """Of all blocks."""


@dataclass(frozen=True)
class Export:
    """Write a model's weights, each rank those of its stages."""

    model: str
    folder: str
    adapter: bool = False
    """Those of its adapter alone, which is not merged then."""


@dataclass(frozen=True)
class Save:
    """Write a checkpoint, each rank its share."""

    folder: str


@dataclass(frozen=True)
class Leave:
    """There is nothing more to do."""


Order = Read | Train | TrainPairs | Export | Save | Leave


@dataclass(frozen=True)
class Ready:
    """The stages are loaded."""

    weight_bytes: int


@dataclass(frozen=True)
class Found:
    """Answer to `Read`."""

    readings: dict[str, tuple[Rows, ...]]
    """By model, of those whose last stage is here: for each micro-batch and sample, a number or one for each
    response token."""
    ran: tuple[Ran, ...]


@dataclass(frozen=True)
class Trained:
    """Answer to `Train` and `TrainPairs`."""

    figures: dict[str, dict[str, float]]
    """By model, of those whose last stage is here: loss and health, and in `weight` what means are to be
    weighted by."""
    norms: dict[str, float]
    """Norm of each model's gradient before it is clipped."""
    ran: tuple[Ran, ...]


@dataclass(frozen=True)
class Written:
    """Answer to `Export` and `Save`."""

    files: dict[str, str]
    """File -> checksum of the weights in it, as they are in memory."""
    weights: dict[str, str]
    """Weight -> its file."""


@dataclass(frozen=True)
class Failed:
    """Nothing more can be done here, and why."""

    reason: str
    ours: bool = True
    """False: what was asked for cannot be done."""


@dataclass(frozen=True)
class Alive:
    """Said now and then by a rank, whatever it does: one that is silent stands still."""


Reply = Ready | Found | Trained | Written | Failed | Alive
_ORDERS = {kind.__name__: kind for kind in (Read, Train, TrainPairs, Export, Save, Leave)}
_REPLIES = {kind.__name__: kind for kind in (Ready, Found, Trained, Written, Failed, Alive)}


class Torn(ServiceError):
    """The other end of a pipe is gone in the middle of a frame."""


def encoded(record: Order | Reply) -> bytes:
    """A frame."""
    body = msgspec.msgpack.encode((type(record).__name__, record))
    return LENGTH.pack(len(body)) + body


def order_of(body: bytes) -> Order:
    """The order in a frame's body."""
    kind, raw = msgspec.msgpack.decode(body, type=tuple[str, msgspec.Raw])
    return msgspec.msgpack.decode(raw, type=_ORDERS[kind])


def reply_of(body: bytes) -> Reply:
    """The reply in a frame's body."""
    kind, raw = msgspec.msgpack.decode(body, type=tuple[str, msgspec.Raw])
    return msgspec.msgpack.decode(raw, type=_REPLIES[kind])


def read_frame(stream: BinaryIO) -> bytes | None:
    """The body of the next frame; None where the stream ends. Raises Torn if it ends within one."""
    head = stream.read(LENGTH.size)
    if not head:
        return None
    body = stream.read(LENGTH.unpack(head)[0]) if len(head) == LENGTH.size else b""
    if len(head) < LENGTH.size or len(body) < LENGTH.unpack(head)[0]:
        raise Torn("a frame is incomplete")
    return body
