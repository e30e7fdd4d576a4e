"""Events: the only way facts enter a core.

Arrived, Aborted, Stopped, WorkerUp, WorkerLost, Reassign, Rollout and Drain come from outside; the others
answer a command.
"""

from dataclasses import dataclass

from plait.spec.cluster import Role
from plait.spec.request import Request


@dataclass(frozen=True, slots=True)
class Arrived:
    """A caller asked for something."""

    request: Request


@dataclass(frozen=True, slots=True)
class Aborted:
    """The caller left; what its request still has is to be freed."""

    request: int


@dataclass(frozen=True, slots=True)
class Stopped:
    """The runtime found a stop string in a request's text; `count` of its drawn tokens were needed."""

    request: int
    count: int


@dataclass(frozen=True, slots=True)
class StepDone:
    """A step finished on every member of its group."""

    step: int
    tokens: tuple[int, ...]
    """Tokens that each row drew, in the step's order (rows, then again)."""
    stopped: tuple[int, ...] = ()
    """Indices of the rows whose last token is one of their stop tokens."""


@dataclass(frozen=True, slots=True)
class StepFailed:
    """A step could not be carried out, though its workers live. No row of it drew anything, and the
    members have forgotten every row of it."""

    step: int
    reason: str


@dataclass(frozen=True, slots=True)
class Moved:
    """A move is complete on every worker of its target; its source's slots are not needed any more."""

    move: int


@dataclass(frozen=True, slots=True)
class MoveFailed:
    """A move could not be completed, or was cancelled. The target's slots hold nothing of use; the source's
    still do, unless the source was lost."""

    move: int
    reason: str


@dataclass(frozen=True, slots=True)
class Woken:
    """The time asked for by `Wake(at_ns)` has come."""

    at_ns: int


@dataclass(frozen=True, slots=True)
class WorkerUp:
    """An instance is ready, with an empty KV pool of `slots` token slots."""

    instance: int
    epoch: int
    slots: int


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """An instance died with all its KV; its unfinished steps, and moves to it, will not be answered. Moves
    from it will: by their targets."""

    instance: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Reassign:
    """From now on an instance, up or not, takes the phases of another role; what it has, it finishes."""

    instance: int
    role: Role


@dataclass(frozen=True, slots=True)
class Rollout:
    """These requests, which arrive after this, are the samples of an iteration."""

    requests: tuple[int, ...]
    """By sample."""
    batch: int
    """Samples that are scored together, in their order: the last batch may have fewer."""
    left: int = 0
    """When so few are not finished, they go on together on `kept` instances while the others score (R_t).
    0: scoring waits for the last one."""
    kept: int = 1
    """Instances that go on drawing then (m)."""
    readers: int = 1
    """Models, or groups of models, that may read a batch on different instances at the same time."""
    load_tokens: int = 0
    """Tokens that an instance scores in the time that loading what reads takes. Where those that have loaded
    will be through with the rest sooner, no other begins."""
    why: str = ""
    """In words, for the journal: what these follow from."""


@dataclass(frozen=True, slots=True)
class Scored:
    """All models have said what they have to say of the batches of a `Score`."""

    score: int


@dataclass(frozen=True, slots=True)
class Drain:
    """Take no new requests; finish those that were accepted."""


Event = (
    Arrived
    | Aborted
    | Stopped
    | StepDone
    | StepFailed
    | Moved
    | MoveFailed
    | Woken
    | WorkerUp
    | WorkerLost
    | Reassign
    | Rollout
    | Scored
    | Drain
)
EXTERNAL = (Arrived, Aborted, Stopped, WorkerUp, WorkerLost, Reassign, Rollout, Drain)
"""Events that no command causes: the input of a simulation."""
