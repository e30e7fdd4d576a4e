"""`Replanner`: when the workload has become another one, a new plan; and its roles, with requests in flight.

monitor.shifted --> plan(rows, present) --> role_changes --> engine.reassign, one by one --> accept
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Protocol

from plait.planner.switch import role_changes
from plait.runtime.engine import Engine
from plait.spec.cluster import Placement
from plait.spec.command import Command
from plait.spec.errors import PlaitError
from plait.spec.event import Event
from plait.workload.trace import TraceRow

log = logging.getLogger(__name__)
LOOK_NS = 1_000_000_000
"""Time between two looks at the monitor."""


class Watch(Protocol):
    """What tells that the workload has changed: `planner.monitor.Monitor`."""

    def see(self, now_ns: int, event: Event, commands: Sequence[Command]) -> None:
        """Take one call of the core."""

    def shifted(self, now_ns: int) -> bool:
        """Whether a new plan is due."""

    def accept(self, now_ns: int) -> None:
        """It is in force, or there is none."""

    def rows(self) -> list[TraceRow]:
        """The recent workload."""


class Replanner:
    """Watches an engine from when it is made. Lives in the engine's loop."""

    def __init__(
        self,
        engine: Engine,
        watch: Watch,
        plan: Callable[[list[TraceRow], Placement], Awaitable[Placement]],
        look_ns: int = LOOK_NS,
    ) -> None:
        """`plan` names the present instances in other roles (`away`); the engine serves meanwhile."""
        self.changes = 0
        """Plans that were put in force."""
        self._engine = engine
        self._watch = watch
        self._plan = plan
        self._look_ns = look_ns
        self._next_ns = 0
        self._task: asyncio.Task[None] | None = None
        engine.watch(self._see)

    def _see(self, now_ns: int, event: Event, commands: Sequence[Command]) -> None:
        self._watch.see(now_ns, event, commands)
        if now_ns < self._next_ns or self._task is not None:
            return
        self._next_ns = now_ns + self._look_ns
        if self._watch.shifted(now_ns):
            self._task = asyncio.get_running_loop().create_task(self._replan())

    async def _replan(self) -> None:
        """A plan that cannot be made or reached leaves all as it is until the workload changes again."""
        try:
            wanted = await self._plan(self._watch.rows(), self._present())
            changes = role_changes(self._present(), wanted)
            for change in changes:
                self._engine.reassign(change.instance, change.role)
            self.changes += bool(changes)
            log.info("the workload has changed: %d role changes", len(changes))
        except PlaitError as error:
            log.warning("the workload has changed, but there is no new plan for it: %s", error)
        finally:
            self._watch.accept(self._engine.driver.now_ns())
            self._task = None

    def _present(self) -> Placement:
        """The configured instances in the roles that they have now."""
        role = self._engine.core.roster.role
        listed = self._engine.config.manager.placement.instances
        return Placement(tuple(replace(each, role=role(each.id)) for each in listed))

    async def idle(self) -> None:
        """Wait for a plan that is being made."""
        if self._task is not None:
            await self._task

    async def close(self) -> None:
        """Give up a plan that is being made."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
