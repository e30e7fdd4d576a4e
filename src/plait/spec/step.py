"""`Step`: one forward pass on one group of instances, and the records it is made of.

A step says only what is new. A row is described (`rows`) when something about it must be said:
its first step on a member, a chunk of its prompt, new KV extents, another master. A row that takes
one more token just as it did in its last step stands in `again` by its id alone: its position
follows its last, its token is the one it drew last, its KV goes to the next slot it was given.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Extent:
    """KV slots [slot, slot + count) of one instance's pool."""

    slot: int
    count: int


@dataclass(frozen=True, slots=True)
class Span:
    """Positions [first, first + total of extents) of a row have their KV in these slots."""

    instance: int
    first: int
    extents: tuple[Extent, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One request in one step.

    It computes positions first, first + stride, ... (`count` of them), whose tokens the row's
    state already holds (`given`) or which is the token it drew last.
    """

    request: int
    first: int
    count: int
    stride: int = 1
    given: bool = True
    draws: bool = False
    """The row's known tokens end with this step: draw the next one."""
    spans: tuple[Span, ...] = ()
    """Where KV lies or will lie, as far as the members were not told before."""
    master: int = 0
    """Instance that runs the row's dense layers, keeps its new KV and draws its token."""


@dataclass(frozen=True, slots=True)
class Step:
    """One forward on one group. Its draws are answered in the order of `rows`, then `again`."""

    id: int
    group: tuple[int, ...]
    """Instances in ring order."""
    rows: tuple[Row, ...]
    again: tuple[int, ...] = ()
    """Requests that take one more token as in their last step."""
    opened: tuple[int, ...] = ()
    """Requests that a member sees for the first time; the runtime attaches their `Opened`."""
    closed: tuple[int, ...] = ()
    """Requests that the members may forget; taken before the rows are read."""
    context_tokens: int = 0
    """Sum over `again` of the tokens that each row attends to, its own included."""
    model: str = ""
    weights_version: int = 0

    @property
    def new_tokens(self) -> int:
        """Tokens that this step computes."""
        return sum(row.count for row in self.rows) + len(self.again)
