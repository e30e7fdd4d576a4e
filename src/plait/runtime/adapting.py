"""`Adapting`: which adapters the workers of a fleet are to have, and that all of them have each.

A worker that is up is told of an adapter between two steps; one that starts has it in its configuration, and
loads it before it says that it is ready. Orders of a worker come in their order, so no row of an adapter is
computed before it is there, nor after it went.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from plait.spec.adapter import Adapter
from plait.spec.errors import UserError
from plait.worker.wire import Adapt, HasAdapter, LacksAdapter, Message, Unadapt

if TYPE_CHECKING:
    from plait.runtime.fleet import Member, Process

log = logging.getLogger(__name__)


class Adapting:
    """Of one fleet; everything runs in its event loop."""

    def __init__(self, members: "Mapping[int, Member]", tell: "Callable[[Member, Message], None]") -> None:
        self._members, self._tell = members, tell
        self.wanted: dict[int, Adapter] = {}
        """By their numbers."""
        self._given: int | None = None
        """The one that is being given."""
        self._fault = ""
        self._news = asyncio.Event()
        self._kills: set[asyncio.Task[None]] = set()

    async def give(self, adapter: Adapter) -> None:
        """Returns when every worker that is up has it. One at a time.

        Raises:
            UserError: a worker cannot have it, and why; then none has.
        """
        assert self._given is None, "adapters are given one at a time"
        self.wanted[adapter.number], self._given, self._fault = adapter, adapter.number, ""
        try:
            for member in self._up():
                self._tell(member, Adapt(adapter))
            while not self._fault and any(
                adapter.number not in part.adapters for member in self._up() for part in member.parts
            ):
                self._news.clear()
                with contextlib.suppress(TimeoutError):  # one of them may be lost
                    await asyncio.wait_for(self._news.wait(), 1.0)
            if self._fault:
                raise UserError(self._fault, "lora")
        except BaseException:
            self.take(adapter.number)
            raise
        finally:
            self._given = None

    def take(self, number: int) -> None:
        """Nobody computes with it any more."""
        self.wanted.pop(number, None)
        for member in self._up():
            self._tell(member, Unadapt(number))

    def joined(self, member: "Member") -> None:
        """An instance is up, which was told in its configuration what was wanted when it was started."""
        had = {adapter.number: None for adapter in member.parts[0].config.adapters}
        for part in member.parts:
            part.adapters.update(had)
        for number in had:
            if number not in self.wanted:
                self._tell(member, Unadapt(number))
        for number, adapter in self.wanted.items():
            if number not in had:
                self._tell(member, Adapt(adapter))

    def heard(self, member: "Member", part: "Process", said: HasAdapter | LacksAdapter) -> None:
        """A worker has an adapter, or cannot have it: then it must not compute."""
        if isinstance(said, HasAdapter):
            part.adapters.add(said.number)
        elif said.number == self._given:
            self._fault = said.reason
        elif said.number in self.wanted:
            log.error("worker %d cannot have adapter %d: %s", member.instance, said.number, said.reason)
            kill = asyncio.get_running_loop().create_task(member.kill())
            self._kills.add(kill)
            kill.add_done_callback(self._kills.discard)
        self._news.set()

    def _up(self) -> "list[Member]":
        return [member for member in self._members.values() if member.up]
