"""`Lanes`: when a step begins and ends on instances that a cost describes, in virtual and in paced time."""

from plait.cost.cost import Cost, Staged
from plait.spec.step import Step


class Lanes:
    """One compute lane per instance, which takes its steps in the order of their ids.

    A step occupies the lanes of its whole group from when all of them are free.
    """

    def __init__(self, cost: Cost) -> None:
        self._cost = cost
        self._free_ns: dict[int, int] = {}
        """Instance -> when its lane is free."""

    @staticmethod
    def of(cost: Cost) -> "Lanes":
        """Those of instances with stages, if `cost` knows of any."""
        return StagedLanes(cost) if isinstance(cost, Staged) else Lanes(cost)

    def take(self, step: Step, now_ns: int) -> tuple[int, int]:
        """Start and end of a step that is given out now."""
        free_ns = self._free_ns
        start_ns = max(now_ns, *(free_ns.get(member, 0) for member in step.group))
        end_ns = start_ns + step.repeat * self._cost.step_ns(step.middle)
        for member in step.group:
            free_ns[member] = end_ns
        return start_ns, end_ns

    def lost(self, instance: int) -> None:
        """An instance comes back with nothing to do."""
        self._free_ns.pop(instance, None)


class StagedLanes(Lanes):
    """Instances with pipeline stages, each of which takes one step at a time: a tandem queue.

    As many steps as there are stages run at once, in order. Stages fill only as far as the core lets several
    steps be in flight (`BatcherConfig.depth`), and a row that takes the token it drew last waits until its
    last step has left the last stage: chunks of prompts follow each other through the stages, decode steps
    with the same rows do not.
    """

    def __init__(self, cost: Staged) -> None:
        super().__init__(cost)
        self._staged = cost
        self._stage_free_ns: dict[int, list[int]] = {}
        """Instance -> when each of its stages is free."""
        self._drawn_ns: dict[int, int] = {}
        """Request -> when its last step ends."""

    def take(self, step: Step, now_ns: int) -> tuple[int, int]:
        """See `Lanes`."""
        stages_ns, drawn_ns = self._staged.stages_ns(step.middle), self._drawn_ns
        for request in step.closed:
            drawn_ns.pop(request, None)
        taking = [*step.again, *(row.request for row in step.rows if not row.given)]
        at_ns = max([now_ns, *(drawn_ns.get(request, 0) for request in taking)])
        lanes = [self._stage_free_ns.setdefault(member, [0] * len(stages_ns)) for member in step.group]
        start_ns = max(at_ns, *(lane[0] for lane in lanes))
        for stage, stage_ns in enumerate(stages_ns):
            at_ns = max(at_ns, *(lane[stage] for lane in lanes)) + step.repeat * stage_ns
            for lane in lanes:
                lane[stage] = at_ns
        drawn_ns |= dict.fromkeys(step.requests, at_ns)
        return start_ns, at_ns

    def lost(self, instance: int) -> None:
        """See `Lanes`."""
        self._stage_free_ns.pop(instance, None)
