"""`Step`: one forward pass on one group of instances, and the records it is made of.

A step says only what is new. A row is described (`rows`) when something about it must be said:
its first step on a member, a chunk of its prompt, new KV extents, another master. A row that takes
one more token just as it did in its last step stands in `again` by its id alone: its position
follows its last, its token is the one it drew last, its KV goes to the next slot it was given.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Extent:
    """KV slots [slot, slot + count) of one instance's pool."""

    slot: int
    count: int


@dataclass(frozen=True, slots=True)
class Span:
    """Slots of a row on one instance, for the tokens that the instance keeps of it from number `first` on, in
    the order of their positions. Where one instance keeps all of a row, numbers are positions."""

    instance: int
    first: int
    extents: tuple[Extent, ...]


@dataclass(frozen=True, slots=True)
class Keep:
    """An instance keeps the KV of positions [first, first + count) of a row, in the next of its slots."""

    instance: int
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Row:
    """One request in one step.

    It computes positions [first, first + count), whose tokens the row's state already holds (`given`) or
    which is the token it drew last. They attend to all earlier positions, whoever of the group keeps them.
    """

    request: int
    first: int
    count: int
    stride: int = 1
    """1: the master computes them all. The size of the group: they are dealt out, first + i to member i
    modulo the stride, and keys and values pass all members in a ring."""
    given: bool = True
    draws: bool = False
    """The row's known tokens end with this step: draw the next one."""
    spans: tuple[Span, ...] = ()
    """Where KV lies or will lie, as far as the members were not told before."""
    master: int = 0
    """Instance that draws its token and, with a stride of 1, runs its dense layers and keeps its new KV."""
    keep: tuple[Keep, ...] = ()
    """Who keeps KV, by intervals of positions in order, as far as the members were not told before; of an
    opened row all of it. What the step computes beyond that, the master keeps."""


@dataclass(frozen=True, slots=True)
class Step:
    """One forward on one group. Its draws are answered in the order of `rows`, then `again`."""

    id: int
    group: tuple[int, ...]
    """Instances in ring order."""
    rows: tuple[Row, ...]
    again: tuple[int, ...] = ()
    """Requests that take one more token as in their last step. A member that was never told of one keeps
    nothing of it, and leaves it out."""
    opened: tuple[int, ...] = ()
    """Requests that a member sees for the first time, or whose master did not draw their last token; the
    runtime attaches their `Opened`, and their rows say all: members forget what they knew of them."""
    closed: tuple[int, ...] = ()
    """Requests that the members may forget; taken before the rows are read."""
    context_tokens: int = 0
    """Sum over `again` of the tokens that each row attends to, its own included; in the first round."""
    model: str = ""
    weights_version: int = 0
    why: str = ""
    """In words, for the journal: why it has this group, and who waits meanwhile. Empty where nothing was to
    be decided."""
    repeat: int = 1
    """Rounds. More than one: every row draws, and goes on from what it drew, so many times; one that draws a
    stop token leaves the others. Nobody hears of a token before the last round is over."""

    @property
    def new_tokens(self) -> int:
        """Tokens that this step computes, where no row stops."""
        return (sum(row.count for row in self.rows) + len(self.again)) * self.repeat

    @property
    def requests(self) -> tuple[int, ...]:
        """In the order of its draws."""
        return (*(row.request for row in self.rows), *self.again)

    @property
    def middle(self) -> "Step":
        """A step of one round, like the middle one of this step's: what to reckon with."""
        if self.repeat == 1:
            return self
        first = sum(row.first + 1 for row in self.rows) + self.context_tokens
        context = first + len(self.requests) * (self.repeat - 1) // 2
        return replace(self, rows=(), again=self.requests, context_tokens=context, repeat=1)
