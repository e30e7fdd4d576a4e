"""Why elastic instances do what they do, in words for the journal."""

from collections.abc import Sequence

from plait.search.batching import Width
from plait.serving.allocation import fastest_ns


def of_batch(
    lengths: Sequence[int], members: int, offered: int, slowed: int, ahead: bool, widths: Sequence[Width]
) -> str:
    """Prompts that begin.

    Args:
        lengths: tokens that each has to compute.
        members: instances that they get.
        offered: that all prompts of this decision share.
        slowed: requests that decode on these: they take one token beside the prompts, or none.
        ahead: it was asked whether they are ahead of an objective.
    """
    linear, square = sum(lengths), sum(length * length for length in lengths)
    said = (
        f"{_prompts(lengths)} on {members} of {offered} instances: {_times(widths, members, linear, square)}"
    )
    if slowed:
        why = "they are ahead of their objective" if ahead else "the prompts gain more by it than these lose"
        said += f"; slows {slowed} that decode there: {why}"
    return said


def of_chunk(chunk: int, left: int, cached: int, members: int, idle: int, widths: Sequence[Width]) -> str:
    """The next part of a long prompt.

    Args:
        chunk: tokens of it, of `left` behind `cached` ones.
        members: instances that it gets; it could have had `idle` more.
    """
    part = f"{chunk:,} of {left:,} tokens left" if chunk < left else f"the last {left:,} tokens"
    times = _times(widths, members, chunk, chunk * (chunk + 2 * cached))
    return f"{part} behind {cached:,}, on {members} instances with {idle} more idle: {times}"


def _prompts(lengths: Sequence[int]) -> str:
    if len(lengths) == 1:
        return f"a prompt of {lengths[0]:,} tokens"
    return f"{len(lengths)} prompts of {min(lengths):,} to {max(lengths):,} tokens"


def _times(widths: Sequence[Width], members: int, linear: float, square: float) -> str:
    there_ns, alone_ns = (fastest_ns(widths, n, linear, square) for n in (members, 1))
    said = f"{there_ns / 1e6:,.1f} ms"
    return said if members == 1 else f"{said}, on one {alone_ns / 1e6:,.1f} ms"
