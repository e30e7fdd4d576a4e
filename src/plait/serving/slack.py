"""How long requests may wait and still keep to objectives.

An objective for the time between tokens is for the mean over an answer: what a row has drawn faster than it
asks, and will still draw faster, it may lose to prompts of others in between. A prompt is due a while after
it came; one that cannot be in time any more lets those pass that can.
"""

from plait.serving.groups import Group
from plait.serving.live import Live


def slack_ns(group: Group, now_ns: int, tpot_ns: float, decode_ns: float, share: float) -> float:
    """Of the row of a group that can wait the least; below 0: it is late already.

    Args:
        tpot_ns: the objective.
        decode_ns: a step of these rows, about.
        share: of the tokens that they may still draw, those that they are presumed to.
    """
    return min(_ahead_ns(live, now_ns, tpot_ns, decode_ns, share) for live in group.lives.values())


def _ahead_ns(live: Live, now_ns: int, tpot_ns: float, decode_ns: float, share: float) -> float:
    left = live.undrawn * share
    return live.since_ns + (live.drawn + left) * tpot_ns - now_ns - left * decode_ns


def due_ns(live: Live, now_ns: int, alone_ns: float, grace: float) -> float:
    """When a prompt that waits is due. One that is late, or will be, is due again so many times its objective
    later, and so on: it lets others pass, but not for ever.

    Args:
        alone_ns: it takes at least so long.
        grace: times of its objective.
    """
    objective_ns = live.due_ns - live.arrived_ns
    late_ns = now_ns + alone_ns - live.due_ns
    if late_ns <= 0:
        return live.due_ns
    again_ns = max(1.0, grace * objective_ns)
    return live.due_ns + again_ns * (1 + late_ns // again_ns)
