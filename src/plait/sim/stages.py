"""`StagedWorkers`: virtual instances with pipeline stages, each of which takes one step at a time."""

from collections.abc import Iterable
from typing import Any

from plait.cost.cost import Staged
from plait.sim.workers import Arrival, VirtualWorkers
from plait.spec.step import Step


class StagedWorkers(VirtualWorkers):
    """As many steps as there are stages run at once, in order: a tandem queue.

    Stages fill only as far as the core lets several steps be in flight (`BatcherConfig.depth`), and a row
    that takes the token it drew last waits until its last step has left the last stage: chunks of prompts
    follow
    each other through the stages, decode steps with the same rows do not.
    """

    def __init__(self, cost: Staged, arrivals: Iterable[Arrival], *more: Any) -> None:
        super().__init__(cost, arrivals, *more)
        self._staged = cost
        self._stage_free_ns: dict[int, list[int]] = {}
        """Instance -> when each of its stages is free."""
        self._drawn_ns: dict[int, int] = {}
        """Request -> when its last step ends."""

    def step_end_ns(self, step: Step, now_ns: int) -> int:
        """See `Hands`."""
        super().step_end_ns(step, now_ns)
        stages_ns = self._staged.stages_ns(step)
        taking = [*step.again, *(row.request for row in step.rows if not row.given)]
        at_ns = max([now_ns, *(self._drawn_ns.get(request, 0) for request in taking)])
        lanes = [self._stage_free_ns.setdefault(member, [0] * len(stages_ns)) for member in step.group]
        for stage, stage_ns in enumerate(stages_ns):
            at_ns = max(at_ns, *(lane[stage] for lane in lanes)) + stage_ns
            for lane in lanes:
                lane[stage] = at_ns
        for member, lane in zip(step.group, lanes, strict=True):
            self._free_ns[member] = lane[0]
        self._drawn_ns |= dict.fromkeys([*step.again, *(row.request for row in step.rows)], at_ns)
        self._flying[step.id] = (step.group, now_ns, at_ns)
        return at_ns

    def lost(self, instance: int, now_ns: int) -> None:
        """See `Hands`."""
        super().lost(instance, now_ns)
        self._stage_free_ns.pop(instance, None)
