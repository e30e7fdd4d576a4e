"""What the manager knows of a request that has not ended, and of an instance that is up."""

from dataclasses import dataclass, field

from plait.spec.request import Request


class Live:
    """A request between its arrival and its end.

    One invariant drives it: steps are issued until the KV of all its known tokens is computed
    (`planned` catches up with prompt + drawn tokens). Prefill, chunks, decoding and recomputation
    after a preemption are the same thing.
    """

    __slots__ = (
        "attempts",
        "bypassed",
        "drawn",
        "flying",
        "id",
        "instance",
        "leaving",
        "max_tokens",
        "most",
        "opened",
        "order",
        "over",
        "planned",
        "presumed",
        "request",
        "room",
    )

    def __init__(self, request: Request, order: int) -> None:
        self.request = request
        self.id = request.id
        self.max_tokens = request.max_tokens
        self.order = order
        """Rank of arrival: older rows go first and younger ones yield."""
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
        self.opened = False
        """Its instance was told of it."""
        self.over = False
        """Ended while it had steps in flight: they are void."""
        self.leaving = False
        """It goes back to the queue once its steps in flight are answered."""
        self.attempts = 0
        """Times that it was lost with a worker or a step."""
        self.most = 0
        """Slots that it may ever hold; known once it was queued."""
        self.presumed = 0
        """Slots that it is presumed to need in all, while it waits."""
        self.bypassed = 0
        """Younger requests that passed it while it was the oldest that could go."""

    @property
    def known(self) -> int:
        """Tokens of prompt and answer so far."""
        return self.request.prompt_tokens + self.drawn

    @property
    def undrawn(self) -> int:
        """Tokens that may still be planned, once the prompt is computed."""
        return self.request.prompt_tokens + self.max_tokens - self.planned - 1

    @property
    def longest(self) -> int:
        """Most KV positions that it will ever need (the last drawn token needs none)."""
        return self.request.prompt_tokens + self.max_tokens - 1


@dataclass(slots=True)
class Seat:
    """One instance that is up, and the requests that sit on it.

    A request on it is in one of three places: `prefilling` (known tokens not all planned),
    `decoding` (one more token each step), or neither (it only waits for its steps in flight).
    """

    instance: int
    epoch: int
    lives: dict[int, Live] = field(default_factory=dict)
    prefilling: dict[int, Live] = field(default_factory=dict)
    decoding: dict[int, Live] = field(default_factory=dict)
    flights: int = 0
    """Steps not answered yet."""
    closed: list[int] = field(default_factory=list)
    """Requests that the next step lets its worker forget."""
    promised: int = 0
    """Slots that its requests hold if all draw all their tokens and share nothing."""
    room: int | None = None
    """Slots that a newcomer may come to hold; None: to be computed again, because a
    request left or began to decode."""
    blocked: int = -1
    """Version of the queue of which nothing fitted into `room`."""

    def taken(self, live: Live) -> None:
        """A newcomer counts with all that it is presumed to need."""
        self.blocked = -1
        if self.room is not None:
            self.room -= live.presumed

    def stir(self) -> None:
        """What the instance may take has changed."""
        self.room, self.blocked = None, -1

    @property
    def backlog(self) -> int:
        """Tokens whose steps are still to be issued before its prompts are computed."""
        return sum(live.known - live.planned for live in self.prefilling.values())


@dataclass(slots=True)
class Flight:
    """A step that is not answered yet."""

    seat: Seat
    lives: tuple[Live, ...]
    """In the step's order."""
    void: bool = False
    """It may read KV that a failed step left uncomputed: what it draws does not count."""


@dataclass(slots=True)
class Counts:
    """Totals since the start, for metrics."""

    preemptions: int = 0
    """Requests that yielded their slots to older ones."""
    recomputations: int = 0
    """Requests that were sent back because a worker or a step was lost."""
    prefix_queries: int = 0
    """Prompt tokens looked up in the prefix cache."""
    prefix_hits: int = 0
    """Prompt tokens found there."""
