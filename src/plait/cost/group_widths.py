"""Times of groups as decisions take them, from any cost of their steps."""

from collections.abc import Iterable

from plait.cost.cost import Cost
from plait.cost.fitted import Fitted, Timing
from plait.search.batching import Width
from plait.spec.step import Row, Step

SHORTEST = 128
"""Tokens of the shortest prompt that is looked at; each further one is twice as long."""


def widths_of(cost: Cost, sizes: Iterable[int], longest: int) -> tuple[Width, ...]:
    """Times in ns of prompts of up to `longest` tokens on groups of these sizes, fitted."""
    lengths = [SHORTEST]
    while lengths[-1] < longest:
        lengths.append(2 * lengths[-1])
    return tuple(_width(cost, size, lengths) for size in sizes)


def decode_ns_of(cost: Cost) -> int:
    """A decode step of a few rows with a thousand tokens each."""
    return cost.step_ns(_decodes(8, 1000))


def _width(cost: Cost, size: int, lengths: list[int]) -> Width:
    group = tuple(range(size))
    timings = [Timing(_decodes(1, 1), 1.0)]  # a fit wants both phases
    for length in lengths:
        prompt = Row(0, 0, length, stride=size, draws=True)
        timings.append(Timing(Step(0, (0,), (prompt,)), cost.step_ns(Step(0, group, (prompt,)))))
    found = Fitted.fit(timings)
    return Width(size, found.prefill_ns, found.prefill_token_ns, found.prefill_square_ns)


def _decodes(rows: int, context: int) -> Step:
    return Step(0, (0,), (), again=tuple(range(rows)), context_tokens=rows * context)
