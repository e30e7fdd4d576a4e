"""Why elastic instances do what they do, in words for the journal."""

from collections.abc import Sequence

from plait.search.batching import Width
from plait.serving.allocation import Gain, fastest_ns


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


def of_first_master(master: int, own: int) -> str:
    """A request begins to decode on one of `own` instances that keep it."""
    return f"instance {master} is master: of {own} that keep it the fullest with room" if own > 1 else ""


def of_last_resort(master: int, own: int) -> str:
    """None of `own` instances that keep it is fit for more rows, and no other one could take it."""
    return f"instance {master} is master: none of {own} that keep it has room and few rows, and none is idle"


def of_added_master(master: int, members: Sequence[int], rows: int | None) -> str:
    """A group grows.

    Args:
        members: those that keep the request.
        rows: each of them has at least so many; None: they are full.
    """
    cause = "no room" if rows is None else f"{rows} rows or more"
    there = ", ".join(map(str, members))
    return f"scale-up: instance {master} is added as master, for {there} {_have(members)} {cause}"


def of_relief(full: int, master: int, members: int) -> str:
    """Another one of a group becomes master of a row."""
    return f"instance {full} is full: {master}, of the same group of {members}, goes on as master"


def of_spread(master: int, new: int, moved: int, rows: int, most: int) -> str:
    """Rows of a master that has too many."""
    return (
        f"scale-up: {moved} of the {rows} rows of instance {master} go on at idle instance {new}, for from "
        f"{most} on a master is bound by arithmetic"
    )


def _have(members: Sequence[int]) -> str:
    return "have" if len(members) > 1 else "has"


def of_pull(tokens: int, sources: Sequence[int], targets: Sequence[int], waiting: int) -> str:
    """A prompt goes on into the pool that decodes.

    Args:
        tokens: that were computed of it.
        waiting: others that wait for the same.
    """
    here, there = (", ".join(map(str, each)) for each in (sources, targets))
    why = "the emptiest with room for all of it" if len(targets) == 1 else "no single one has room for it"
    return f"{tokens:,} tokens computed on {here} go on at {there}, {why}; {waiting} others wait for room"


def of_compaction(instance: int, rows: int, tokens: int, move_ns: float, gain: Gain) -> str:
    """An instance is freed for prompts: its rows go on elsewhere."""
    return (
        f"compaction: {rows} rows with {tokens:,} tokens leave instance {instance} to prompts, which save "
        f"{gain.saved_ns / 1e6:,.1f} ms, for pauses of {move_ns / 1e6:,.1f} ms"
    )
