"""`RlhfCore`: one iteration of RLHF as events. It owns a GlobalManager, and lends and takes back instances.

    Rollout, Arrived ... -> samples are drawn on all instances
    so few unfinished    -> those on most instances move together; these are lent   (inter-stage fusion)
    a batch is finished  -> Score, as soon as a device is free -> Scored
    all are scored       -> instances are taken back

What is scored together follows from the samples' numbers, never from when they end; so what is trained on
does not depend on the fusion. The scheme is that of RLHFuse (arXiv 2409.13221, section 4).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from plait.serving.manager import GlobalManager
from plait.spec.cluster import Role
from plait.spec.command import Command, End, Score
from plait.spec.errors import UserError
from plait.spec.event import Event, Reassign, Rollout, Scored


@dataclass(frozen=True, slots=True)
class InterStageConfig:
    """When generation and scoring overlap."""

    tail_share: float = 0.0
    """Share of an iteration's samples; when so many are left, they go on together on few instances while the
    others score (R_t over the batch). 0: scoring waits for the last sample."""
    kept: int = 1
    """Instances that go on drawing (m)."""

    def __post_init__(self) -> None:
        if not 0 <= self.tail_share <= 1:
            raise UserError(f"tail_share must be between 0 and 1, not {self.tail_share}", "tail_share")
        if self.kept < 1:
            raise UserError(f"kept must be at least 1, not {self.kept}", "kept")


class RlhfCore:
    """See the module. Without a `Rollout` it is the manager that it owns."""

    def __init__(self, manager: GlobalManager, config: InterStageConfig) -> None:
        self.manager, self.config = manager, config
        self.lent: dict[int, Role] = {}
        """Instances that work for others, with the role that they had."""
        self._sample: dict[int, int] = {}
        """Request -> sample, of those that are not finished."""
        self._left: list[int] = []
        """Samples of each batch that are not finished."""
        self._scored: list[bool] = []
        self._asked: list[bool] = []
        self._batch = 1
        self._trigger = 0

    def handle(self, event: Event, now: int) -> list[Command]:
        """Take in one fact and say what is to be done; see `GlobalManager.handle`."""
        if isinstance(event, Rollout):
            self._begin(event)
            return []
        if isinstance(event, Scored):
            for batch in event.batches:
                self._scored[batch] = True
            commands: list[Command] = []
        else:
            commands = self.manager.handle(event, now)
            self._take_ends(commands)
        if self._asked:
            commands += self._go_on(now)
        return commands

    def _begin(self, event: Rollout) -> None:
        assert not self._sample, "the last iteration's samples are not finished"
        count, self._batch = len(event.requests), event.batch
        self._sample = {request: sample for sample, request in enumerate(event.requests)}
        self._left = [min(event.batch, count - first) for first in range(0, count, event.batch)]
        self._scored = [False] * len(self._left)
        self._asked = [False] * len(self._left)
        self._trigger = ceil(count * self.config.tail_share) if self.config.tail_share else 0

    def _take_ends(self, commands: Sequence[Command]) -> None:
        for command in commands:
            if isinstance(command, End) and command.request in self._sample:
                self._left[self._sample.pop(command.request) // self._batch] -= 1

    def _go_on(self, now: int) -> list[Command]:
        commands: list[Command] = []
        if not self.lent and 0 < len(self._sample) <= self._trigger:
            commands += self._lend(now)
        if self._free():
            ready = [b for b, left in enumerate(self._left) if not left and not self._asked[b]]
            if ready and not self._busy():
                for batch in ready:
                    self._asked[batch] = True
                commands.append(Score(tuple(ready)))
        if all(self._scored):
            commands += self._take_back(now)
        return commands

    def _free(self) -> bool:
        """A device can score: nobody draws any more, or an instance that is lent has nothing left."""
        seats = self.manager.seats
        return not self._sample or any(i not in seats or not seats[i].lives for i in self.lent)

    def _busy(self) -> bool:
        return any(asked and not done for asked, done in zip(self._asked, self._scored, strict=True))

    def _lend(self, now: int) -> list[Command]:
        """Keep those instances that have most unfinished samples, so that the fewest move."""
        seats = self.manager.seats
        order = sorted(seats, key=lambda instance: (-len(seats[instance].lives), instance))
        commands: list[Command] = []
        for instance in sorted(order[self.config.kept :]):
            self.lent[instance] = self.manager.roster.role(instance)
            commands += self.manager.handle(Reassign(instance, Role.LENT), now)
        self._take_ends(commands)
        return commands

    def _take_back(self, now: int) -> list[Command]:
        commands: list[Command] = []
        for instance, role in self.lent.items():
            commands += self.manager.handle(Reassign(instance, role), now)
        self.lent.clear()
        self._asked.clear()
        self._scored.clear()
        return commands
