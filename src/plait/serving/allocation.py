"""How many instances prompts are worth, and when decodes should pause for them: gains against costs.

All sums are in time per token, as LoongServe's objective is (sections 5.1, 5.2): a prompt of `length` tokens
that is done sooner gains the time / length; a decode of `length` tokens that pauses loses as much.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

from plait.search.batching import Job, Width


def fastest_ns(widths: Sequence[Width], instances: int, linear: float, square: float) -> float:
    """Time of a batch on at most so many instances; infinite on none."""
    best_ns = inf
    for width in widths:
        if width.instances <= instances:
            best_ns = min(best_ns, width.alpha + width.beta * linear + width.gamma * square)
    return best_ns


def filled(widths: Sequence[Width], most: int) -> tuple[Width, ...]:
    """Times of groups of every size up to `most`, ascending: a size that is not among `widths` counts as the
    next smaller one, whose instances it could leave to do it alone. One instance must be among them."""
    found: list[Width] = []
    known = {width.instances: width for width in widths}
    for size in range(1, most + 1):
        width = known.get(size) or replace(found[-1], instances=size)
        found.append(width)
    return tuple(found)


def most_useful(
    widths: Sequence[Width], instances: int, linear: float, square: float, hysteresis: float
) -> int:
    """The smallest number of instances, at most so many, from which more would not save a share of
    `hysteresis` of the time."""
    best_ns = fastest_ns(widths, instances, linear, square)
    for width in sorted(widths, key=lambda width: width.instances):
        if fastest_ns(widths, width.instances, linear, square) <= best_ns * (1 + hysteresis):
            return min(width.instances, instances)
    return instances


def longest_chunk(width: Width, within_ns: float, cached: int, tokens: int) -> int:
    """Most of `tokens` tokens, behind `cached` computed ones, that a group computes in this time; at least
    one. Time is alpha + beta c + gamma (c^2 + 2 c cached)."""
    least, most = 1, tokens
    while least < most:
        count = (least + most + 1) // 2
        square = count * (count + 2 * cached)
        if width.alpha + width.beta * count + width.gamma * square <= within_ns:
            least = count
        else:
            most = count - 1
    return least


@dataclass(frozen=True, slots=True)
class Gain:
    """What jobs gain by more instances."""

    with_ns: float
    """Their time with them."""
    saved_ns: float
    urgency: float
    """What a nanosecond counts, over all jobs."""

    @property
    def value(self) -> float:
        """In time per token."""
        return self.saved_ns * self.urgency


def gain_of(jobs: Sequence[Job], widths: Sequence[Width], instances: int, more: int, wait_ns: float) -> Gain:
    """By `more` instances beside those that the jobs have without; with none they would wait for `wait_ns`
    and then have `more`."""
    linear, square = sum(job.linear for job in jobs), sum(job.square for job in jobs)
    with_ns = fastest_ns(widths, instances + more, linear, square)
    without_ns = fastest_ns(widths, instances, linear, square) if instances else wait_ns + with_ns
    return Gain(with_ns, without_ns - with_ns, sum(job.urgency for job in jobs))


def worth_pausing(
    jobs: Sequence[Job],
    widths: Sequence[Width],
    instances: int,
    more: int,
    decode_tokens: Sequence[float],
    wait_ns: float,
) -> bool:
    """Whether to take `more` instances from the rows that decode on them.

    Args:
        instances: that the jobs have without; with none they would wait for `wait_ns` and then have `more`.
        decode_tokens: tokens of each answer that would pause, in all.
    """
    gain = gain_of(jobs, widths, instances, more, wait_ns)
    return gain.value > gain.with_ns * sum(1 / max(tokens, 1.0) for tokens in decode_tokens)
