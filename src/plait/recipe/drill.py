"""`Drill`: in the middle of a load a worker is killed, and what became of its requests is counted."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from plait.runtime.engine import Engine
from plait.serving.live import Seat
from plait.spec.command import Command, End
from plait.spec.event import Event, WorkerLost, WorkerUp
from plait.workload.result import COMPLETED

NS = 1e9
ENOUGH = 3
"""Requests on an instance that make its loss worth waiting for."""


@dataclass
class Drill:
    """An observer of an engine. It kills the instance that decodes most, once so many requests have ended.

    The engine's own rules do the rest: what the instance held is computed anew elsewhere, or there once its
    processes have been replaced.
    """

    engine: Engine
    after: int
    """Requests that end before the kill."""
    by: int
    """Requests that have ended when it is done in any case; before, it waits for `ENOUGH` on one instance."""
    instance: int | None = None
    """Which was killed; None: none so far."""
    role: str = ""
    held: list[int] = field(default_factory=list)
    """Requests that had keys and values there."""
    outcomes: dict[int, str] = field(default_factory=dict)
    """How they ended."""
    killed_after: int = 0
    """Requests that had ended then."""
    ended: int = 0
    """Requests so far."""
    lost_ns: int | None = None
    """When the engine knew of it, by its clock."""
    back_ns: int | None = None
    """When the instance was up again."""
    _kill: asyncio.Task[None] | None = None

    def see(self, now_ns: int, event: Event, commands: Sequence[Command]) -> None:
        """Take one call of the core."""
        for command in commands:
            if isinstance(command, End):
                self.ended += 1
                if command.request in self.held:
                    self.outcomes[command.request] = command.reason.value
        if isinstance(event, WorkerLost) and event.instance == self.instance and self.lost_ns is None:
            self.lost_ns = now_ns
        if isinstance(event, WorkerUp) and event.instance == self.instance:
            self.back_ns = now_ns
        if self.instance is None and self.ended >= self.after:
            self._begin()

    def _begin(self) -> None:
        """Nothing is killed where nothing decodes: the next call looks again."""
        seats = [seat for seat in self.engine.core.seats.values() if seat.role.decodes and seat.lives]
        if not seats:
            return
        most: Seat = max(seats, key=lambda seat: len(seat.lives))
        if len(most.lives) < ENOUGH and self.ended < self.by:
            return
        self.instance, self.role, self.held = most.instance, most.role.value, sorted(most.lives)
        self.killed_after = self.ended
        self._kill = asyncio.get_running_loop().create_task(self.engine.kill(most.instance))

    def figures(self) -> dict[str, object]:
        """What happened, for a stage's provenance."""
        assert self.lost_ns is not None, "a worker was killed"
        recovered = sum(reason in COMPLETED for reason in self.outcomes.values())
        return {
            "killed": self.instance,
            "role": self.role,
            "after": self.killed_after,
            "requests": self.held,
            "recovered": recovered,
            "lost_ns": self.lost_ns,
            "away_s": None if self.back_ns is None else (self.back_ns - self.lost_ns) / NS,
        }
