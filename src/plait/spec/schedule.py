"""`PipelineSchedule`: what every rank of a training pipeline does, in order, as data.

Several models may share the ranks: a rank (a fused stage: one set of devices) then holds a stage of each of
them, and a schedule's row says in which order it runs their subtasks.
"""

from dataclasses import dataclass
from enum import Enum
from math import inf

from plait.spec.errors import UserError


class Kind(Enum):
    """What is done with a micro-batch at a stage."""

    F = "F"
    """Forward."""
    B = "B"
    """Backward: of inputs and weights, or of the inputs alone where W exists."""
    W = "W"
    """Backward of the weights; nothing waits for it."""


@dataclass(frozen=True, slots=True)
class Action:
    """One pipeline subtask."""

    model: int
    """Which of the problem's models; copies of one count apart."""
    stage: int
    """Stage of that pipeline, in the order of its forward; not the rank."""
    kind: Kind
    micro_batch: int

    def __str__(self) -> str:
        return f"{self.model}.{self.stage}{self.kind.value}{self.micro_batch}"


@dataclass(frozen=True, slots=True)
class PipelinedModel:
    """One model that is cut into stages, or one of several copies of it that share the samples.

    Raises:
        UserError: the sequences differ in length, or a time, a size or a count cannot be.
    """

    micro_batches: int
    ranks: tuple[int, ...]
    """Who holds each stage, in the order of the forward. A rank may hold several of them."""
    forward_s: tuple[float, ...]
    """Of one micro-batch at each stage."""
    backward_s: tuple[float, ...]
    """The same of the backward; with `weight_s`, of the inputs' part alone. (): it is not trained, and its
    micro-batches go through forwards alone."""
    weight_s: tuple[float, ...] | None = None
    """Of the weights' part of the backward, which may then run later; None: it is part of B."""
    kept_bytes: tuple[float, ...] = ()
    """What a micro-batch occupies at each stage from the start of its F to the end of its last B or W."""
    sent_bytes: float = 0.0
    """What one stage passes to the next for a micro-batch, and the same back as a gradient."""
    name: str = ""

    def __post_init__(self) -> None:
        if not self.kept_bytes:
            object.__setattr__(self, "kept_bytes", (0.0,) * len(self.ranks))
        backward_s, weight_s = self.backward_s or self.forward_s, self.weight_s or self.forward_s
        columns = (self.forward_s, backward_s, self.kept_bytes, weight_s)
        if not self.ranks or any(len(column) != len(self.ranks) for column in columns):
            raise UserError(f"pipeline {self.name or '?'}: give one time and size for each of its stages")
        if self.micro_batches < 1:
            raise UserError(f"pipeline {self.name or '?'}: at least one micro-batch is needed")
        if self.weight_s and not self.backward_s:
            raise UserError(f"pipeline {self.name or '?'}: weight_s needs backward_s")
        timed = (*self.forward_s, *self.backward_s, *(self.weight_s or ()))
        if not all(0 < time < inf for time in timed):
            raise UserError(f"pipeline {self.name or '?'}: times of stages must be above 0 s and finite")
        if not all(0 <= size < inf for size in (*self.kept_bytes, self.sent_bytes)):
            raise UserError(f"pipeline {self.name or '?'}: sizes must be at least 0 bytes and finite")

    @property
    def stages(self) -> int:
        """How many it is cut into."""
        return len(self.ranks)

    @property
    def goes_round(self) -> bool:
        """Whether a rank holds several of its stages, as in interleaved schedules."""
        return len(set(self.ranks)) < self.stages

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of actions that it consists of."""
        if not self.backward_s:
            return (Kind.F,)
        return (Kind.F, Kind.B) if self.weight_s is None else (Kind.F, Kind.B, Kind.W)

    def seconds(self, kind: Kind, stage: int) -> float:
        """How long an action takes."""
        if kind is Kind.W:
            assert self.weight_s is not None
            return self.weight_s[stage]
        return (self.forward_s if kind is Kind.F else self.backward_s)[stage]


@dataclass(frozen=True, slots=True)
class PipelineProblem:
    """Pipelines that train at the same time on the same ranks.

    Raises:
        UserError: a pipeline names a rank that is not there, or caps are not one for each rank.
    """

    ranks: int
    models: tuple[PipelinedModel, ...]
    latency_s: float = 0.0
    """Of a message between two ranks; it occupies neither of them."""
    bandwidth: float = inf
    """Bytes per second between two ranks."""
    memory_bytes: tuple[float, ...] = ()
    """What the micro-batches in flight may occupy on each rank; (): any amount."""

    def __post_init__(self) -> None:
        if not self.models:
            raise UserError("a pipeline problem needs at least one pipeline")
        for pipeline in self.models:
            if not all(0 <= rank < self.ranks for rank in pipeline.ranks):
                raise UserError(
                    f"pipeline {pipeline.name or '?'}: its ranks must be among 0..{self.ranks - 1}"
                )
        if self.memory_bytes and len(self.memory_bytes) != self.ranks:
            raise UserError(f"give one memory cap for each of the {self.ranks} ranks, or none")
        if self.latency_s < 0 or self.bandwidth <= 0:
            raise UserError("latency must be at least 0 s and bandwidth above 0 bytes/s")

    def delay_s(self, pipeline: PipelinedModel, source: int, target: int) -> float:
        """From the end of an action on rank `source` to when its result is on rank `target`."""
        return 0.0 if source == target else self.latency_s + pipeline.sent_bytes / self.bandwidth


@dataclass(frozen=True, slots=True)
class PipelineSchedule:
    """For every rank its actions in the order in which it runs them."""

    rows: tuple[tuple[Action, ...], ...]


class Verb(Enum):
    """What a rank does at one place of its program."""

    RUN = "runs"
    SEND = "sends"
    RECEIVE = "receives"


@dataclass(frozen=True, slots=True)
class Deed:
    """One place of a rank's program."""

    verb: Verb
    action: Action
    """What is run, or whose result is passed on."""
    peer: int = -1
    """The other rank of a message."""


Program = tuple[Deed, ...]
"""What a rank does, messages included, in an order that is safe on any transport."""
