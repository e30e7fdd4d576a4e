"""How long rows that decode may wait for prompts and still keep to an objective for the time between tokens.

An objective is for the mean over an answer: what a row has drawn faster than it asks, and will still draw
faster, it may lose to prompts of others in between.
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
