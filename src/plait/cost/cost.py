"""`Cost`: how long a step takes. `Load`: what a step asks of a device, in terms to compute with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from plait.spec.errors import UserError
from plait.spec.step import Row, Step


class Cost(Protocol):
    """Predicts the time of a step on an idle group."""

    def step_ns(self, step: Step) -> int:
        """Nanoseconds from the step's start to the end of its slowest member."""
        ...


@runtime_checkable
class Staged(Cost, Protocol):
    """A cost of instances with pipeline stages. Steps pass them in order; `step_ns` is their sum."""

    def stages_ns(self, step: Step) -> tuple[int, ...]:
        """Nanoseconds in each stage, hops included, in order. A stage takes one step at a time."""
        ...


@dataclass(frozen=True, slots=True)
class ByInstance:
    """Instances of different plans: a step costs what its slowest member's model says."""

    costs: Mapping[int, Cost]
    """Instance -> its cost."""

    def step_ns(self, step: Step) -> int:
        """See `Cost`."""
        return max(self.costs[member].step_ns(step) for member in step.group)

    def stages_ns(self, step: Step) -> tuple[int, ...]:
        """See `Staged`; an instance without stages is one. Of a group, the slowest member's."""
        found = [self._stages_ns(member, step) for member in step.group]
        if len({len(each) for each in found}) > 1:
            raise UserError("instances of one group must have as many stages each", "group")
        return max(found, key=sum)

    def _stages_ns(self, member: int, step: Step) -> tuple[int, ...]:
        # Asked for by name: a check against the protocol takes longer than all else here.
        stages_ns: Callable[[Step], tuple[int, ...]] | None = getattr(self.costs[member], "stages_ns", None)
        return (self.costs[member].step_ns(step),) if stages_ns is None else stages_ns(step)


@dataclass(frozen=True, slots=True)
class Load:
    """A step as sums over its rows.

    A row whose tokens are given is a *chunk* of a prefill; every other row is a *decode*, whether the step
    describes it (`rows`) or only names it (`again`).
    """

    chunk_tokens: int
    """New tokens of all chunks."""
    chunk_pairs: int
    """(query, key) pairs of all chunks: a token at position p attends to p + 1."""
    cached_tokens: int
    """Tokens before each chunk whose KV it reads, summed."""
    decodes: int
    """Rows that take one token."""
    context_tokens: int
    """Tokens that the decodes attend to, their own included, summed."""
    draws: int
    """Rows that need logits."""
    members: int
    """Instances that share the step."""

    @property
    def tokens(self) -> int:
        """Tokens that the step computes."""
        return self.chunk_tokens + self.decodes

    @staticmethod
    def of(step: Step) -> "Load":
        """Sum up `step`; linear in `step.rows`, constant in `step.again`."""
        chunk_tokens = chunk_pairs = cached_tokens = decodes = draws = 0
        context_tokens = step.context_tokens
        for row in step.rows:
            draws += row.draws
            if row.given:
                chunk_tokens += row.count
                chunk_pairs += pairs(row)
                cached_tokens += row.first
            else:
                decodes += 1
                context_tokens += row.first + 1
        batch = len(step.again)
        return Load(
            chunk_tokens=chunk_tokens,
            chunk_pairs=chunk_pairs,
            cached_tokens=cached_tokens,
            decodes=decodes + batch,
            context_tokens=context_tokens,
            draws=draws + batch,
            members=max(len(step.group), 1),
        )


def pairs(row: Row, window: int | None = None) -> int:
    """(query, key) pairs of a row's new tokens, each limited to `window` keys.

    The token at position p attends to p + 1 keys, so a chunk of n tokens after c cached ones has
    n * c + n * (n + 1) / 2 of them.
    """
    last = row.first + row.count - 1
    if window is None or last < window:
        return row.count * (row.first + 1) + row.count * (row.count - 1) // 2
    if row.first >= window:
        return row.count * window
    short = window - row.first  # tokens that the window does not limit
    below = short * (row.first + 1) + short * (short - 1) // 2
    return below + (row.count - short) * window
