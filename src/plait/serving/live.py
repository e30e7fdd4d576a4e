"""What the manager knows of a request that has not ended, and of an instance that is up."""

from dataclasses import dataclass, field

from plait.spec.cluster import Role
from plait.spec.move import Move
from plait.spec.request import Request
from plait.spec.step import Keep


class Live:
    """A request between its arrival and its end.

    One invariant drives it: steps are issued until the KV of all its known tokens is computed
    (`planned` catches up with prompt + drawn tokens). Prefill, chunks, decoding and recomputation
    after a preemption are the same thing.
    """

    __slots__ = (
        "arrived_ns",
        "attempts",
        "away",
        "bypassed",
        "drawn",
        "due_ns",
        "flying",
        "held",
        "id",
        "instance",
        "kept",
        "least",
        "leaving",
        "master",
        "max_tokens",
        "most",
        "opened",
        "order",
        "over",
        "parts",
        "passing",
        "planned",
        "presumed",
        "relocation",
        "request",
        "room",
        "since_ns",
        "step",
        "synced",
        "told",
        "transfer",
        "turn",
    )

    def __init__(self, request: Request, order: int) -> None:
        self.request = request
        self.id = request.id
        self.max_tokens = request.max_tokens
        self.order = order
        """Lower goes first, and higher yields: the time of its arrival, moved by its priority."""
        self.drawn = 0
        """Tokens drawn and answered."""
        self.instance = -1
        """Where it runs; -1: it waits."""
        self.planned = 0
        """Positions whose KV is computed by the steps issued so far."""
        self.room = 0
        """Decode steps that may be issued before more slots are needed or its tokens are used up."""
        self.flying = 0
        """Its steps that are not answered yet."""
        self.turn = 0
        """Its last step among those of its instance, where that has several stages."""
        self.opened = False
        """Its instance was told of it."""
        self.over = False
        """Ended while it had steps in flight: they are void."""
        self.leaving = False
        """It goes back to the queue once its steps in flight are answered."""
        self.attempts = 0
        """Times that it was lost with a worker or a step."""
        self.passing = False
        """Its instance computes only its prompt: it is to decode elsewhere."""
        self.held = False
        """It waits to be pulled by an instance that decodes."""
        self.transfer: Transfer | None = None
        """It has slots at two instances."""
        self.relocation: Relocation | None = None
        """On elastic instances: some of its KV is on its way to others."""
        self.step = -1
        """The step that computes the last token of its prompt, if it is passing."""
        self.most = 0
        """Slots that it may ever hold; known once it was queued."""
        self.least = 0
        """Slots that the tokens known when it was queued need."""
        self.presumed = 0
        """Slots that it is presumed to need in all, while it waits."""
        self.bypassed = 0
        """Younger requests that passed it while it was the oldest that could go."""
        self.parts: dict[int, int] | None = None
        """On elastic instances: tokens whose KV each keeps, by the steps issued so far, but for those that
        its master kept since it became that; None: it runs on one instance, or waits."""
        self.kept: list[Keep] = []
        """The same by intervals of positions, in order."""
        self.away = 0
        """On elastic instances: tokens whose KV others than the master keep."""
        self.arrived_ns = 0
        self.due_ns = 0.0
        """On elastic instances with an objective: when its first token should be drawn."""
        self.since_ns = 0
        """On elastic instances: when its first token was drawn."""
        self.master = -1
        """On elastic instances: who computes its next token; -1: its prompt is not computed."""
        self.told: dict[int, None] = {}
        """Elastic instances that know it."""
        self.synced: tuple[int, ...] = ()
        """Those that know who keeps what of it: the group of its last prompt step."""

    @property
    def known(self) -> int:
        """Tokens of prompt and answer so far."""
        return self.request.prompt_tokens + self.drawn

    @property
    def instances(self) -> tuple[int, ...]:
        """Elastic instances that keep some of it or compute its next token."""
        assert self.parts is not None
        return tuple(self.parts)

    @property
    def pinned(self) -> bool:
        """A step or a move of it is in flight: its slots must stay."""
        return self.flying > 0 or self.transfer is not None or self.relocation is not None

    @property
    def promise(self) -> int:
        """Slots that its instance promised it."""
        return self.least if self.passing else self.most

    @property
    def answered(self) -> bool:
        """It is passing, and its prompt is computed and its next token drawn: nothing here can fail it."""
        return self.passing and self.step >= 0 and not self.flying and self.planned < self.known

    @property
    def undrawn(self) -> int:
        """Tokens that may still be planned, once the prompt is computed."""
        return self.request.prompt_tokens + self.max_tokens - self.planned - 1

    @property
    def longest(self) -> int:
        """Most KV positions that it will ever need (the last drawn token needs none)."""
        return self.request.prompt_tokens + self.max_tokens - 1


@dataclass(slots=True, eq=False)
class Seat:
    """One instance that is up, and the requests that sit on it.

    A request on it is in one of three places: `prefilling` (known tokens not all planned),
    `decoding` (one more token each step), or neither (it waits for its steps in flight, or for a hand-over to
    or from here).
    """

    instance: int
    epoch: int
    role: Role = Role.MIXED
    step_tokens: int | None = None
    """Tokens that saturate it; None: the batcher's figure."""
    stages: int = 1
    """Stages that steps pass one after another: so many steps of different rows keep all of them busy."""
    prefills: bool = True
    decodes: bool = True
    """What its role takes; looked at too often to ask the role each time."""
    retiring: bool = False
    """It takes nothing new, until what it has is finished and it takes another role."""
    lives: dict[int, Live] = field(default_factory=dict)
    prefilling: dict[int, Live] = field(default_factory=dict)
    decoding: dict[int, Live] = field(default_factory=dict)
    flights: int = 0
    """Steps not answered yet."""
    turn: int = 0
    """Steps so far, where it has several stages."""
    closed: list[int] = field(default_factory=list)
    """Requests that the next step lets its worker forget."""
    arriving: int = 0
    """Moves to it that are not answered yet."""
    held_slots: int = 0
    """Slots of requests that wait here to be pulled."""
    promised: int = 0
    """Slots that its requests hold if all draw all their tokens and share nothing."""
    room: int | None = None
    """Slots that a newcomer may come to hold; None: to be computed again, because a
    request left or began to decode."""
    blocked: int = -1
    """Version of the queue of which nothing fitted into `room`."""

    def __post_init__(self) -> None:
        self.play(self.role)

    def play(self, role: Role) -> None:
        """Take the phases of a role from now on. (What elastic instances take is `Elasticity`'s to say.)"""
        alone = not role.elastic
        self.role, self.prefills, self.decodes = role, alone and role.prefills, alone and role.decodes
        self.stir()

    def taken(self, slots: int) -> None:
        """A newcomer counts with all that it is presumed to need."""
        self.blocked = -1
        if self.room is not None:
            self.room -= slots

    def stir(self) -> None:
        """What the instance may take has changed."""
        self.room, self.blocked = None, -1

    @property
    def backlog(self) -> int:
        """Tokens whose steps are still to be issued before its prompts are computed."""
        return sum(live.known - live.planned for live in self.prefilling.values())


@dataclass(slots=True, eq=False)
class Transfer:
    """A request on its way between two instances, with slots at both."""

    live: Live
    source: Seat | None
    """None: it was lost meanwhile."""
    target: Seat
    first: int
    """Position up to which the target had its KV before."""
    move: Move | None = None
    """As last said; None: there was nothing to move."""
    tries: int = 0
    """Times that it was said again."""
    done: bool = False
    """All KV is at the target, and only the answer to the request's last step is missing."""
    void: bool = False
    """What is moved is of no use."""


@dataclass(slots=True, eq=False)
class Relocation:
    """A request some of whose KV is on its way between elastic instances, with slots at both ends."""

    live: Live
    kept: list[Keep]
    """Who keeps what of it when all has arrived."""
    targets: dict[int, int]
    """Instance -> tokens that it receives."""
    sources: tuple[int, ...]
    """Instances that keep nothing of it then."""
    flying: dict[int, Move] = field(default_factory=dict)
    """Moves without an answer, by id."""
    tries: int = 0
    """Times that one of them was said again."""
    broken: bool = False
    """Not everything will arrive, or nobody wants it any more."""
    spent: bool = False
    """A move failed too often."""


@dataclass(slots=True)
class Flight:
    """A step that is not answered yet."""

    seats: tuple[Seat, ...]
    """Of its group."""
    lives: tuple[Live, ...]
    """In the step's order."""
    void: bool = False
    """It may read KV that a failed step left uncomputed: what it draws does not count."""
    prompts: bool = False
    """A group computes prompts."""


@dataclass(slots=True)
class Counts:
    """Totals since the start, for metrics."""

    preemptions: int = 0
    """Requests that yielded their slots to older ones."""
    recomputations: int = 0
    """Requests that were sent back because a worker or a step was lost."""
    moves: int = 0
    """Requests whose KV began to move to another instance."""
    moved_tokens: int = 0
    """Tokens of theirs that were not at their targets before."""
    move_retries: int = 0
    """Times that a failed move was tried again."""
    prefix_queries: int = 0
    """Prompt tokens looked up in the prefix cache."""
    prefix_hits: int = 0
    """Prompt tokens found there."""
