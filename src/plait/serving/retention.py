"""Which instance keeps which tokens of prompts that a group computes: the plan of a scale-down.

Every chunk of keys passes every member of the ring anyway, so any division costs nothing to carry out
(LoongServe, section 4.1). Here as few instances as possible keep anything: the fullest take first, a prompt
stays whole where it can, and who keeps nothing leaves the group when the prompt is computed.
"""

from collections.abc import Collection, Mapping

from plait.spec.step import Keep


def retain(
    fresh: Mapping[int, tuple[int, int]],
    free: Mapping[int, int],
    used: Mapping[int, int],
    slack: Mapping[tuple[int, int], int],
    page: int,
    passing: Collection[int] = (),
) -> dict[int, tuple[Keep, ...]] | None:
    """Divide tokens over instances; the largest prompt first.

    Args:
        fresh: request -> the first position that is computed of it, and how many are.
        free: instance -> free slots, whole pages.
        used: instance -> slots that requests hold.
        slack: (request, instance) -> slots that the request holds there and has not filled; an entry for each
            instance where it has any KV.
        passing: instances that do not decode: what they keep is to move on, so they take what others cannot.

    Returns:
        What each request leaves where, in the order of its positions; None: there is not room for all.
    """
    left = dict(free)
    plan: dict[int, tuple[Keep, ...]] = {}
    for request, (begin, count) in sorted(fresh.items(), key=lambda item: (-item[1][1], item[0])):

        def rank(i: int, request: int = request) -> tuple[bool, bool, int, int]:
            return (i in passing, (request, i) not in slack, -used[i] - free[i] + left[i], i)

        order = sorted(left, key=rank)
        rooms = {i: left[i] + slack.get((request, i), 0) for i in order}
        whole = next((i for i in order if rooms[i] >= count), None)
        kept: list[Keep] = []
        first = 0
        for instance in order if whole is None else [whole]:
            taken = min(count - first, rooms[instance])
            if taken > 0:
                kept.append(Keep(instance, begin + first, taken))
                left[instance] -= -(-max(0, taken - slack.get((request, instance), 0)) // page) * page
                first += taken
        if first < count:
            return None
        plan[request] = tuple(kept)
    return plan
