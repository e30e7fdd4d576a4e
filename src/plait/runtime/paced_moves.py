"""`PacedMoves`: the moves of a paced fleet, answered no earlier than a network would have carried them.

Bytes travel for real; when they would have arrived is told by `Copies`, as in a simulation. A move is
answered once both are over. One that failed, or that nobody wants any more, is answered at once.
"""

import asyncio
from collections.abc import Callable, Mapping

from plait.runtime.alarms import Alarm, Alarms
from plait.sim.copies import Copies, Network
from plait.spec.event import Moved, MoveFailed
from plait.spec.move import Move


class PacedMoves:
    """Holds answers back. Everything runs in one event loop."""

    def __init__(
        self,
        network: Network,
        nodes: Mapping[int, int],
        alarms: Alarms,
        deliver: Callable[[Moved | MoveFailed], None],
    ) -> None:
        """`nodes`: instance -> its node, 0 for those that are not there."""
        self._copies = Copies(network, nodes)
        self._alarms = alarms
        self._deliver = deliver
        self._travelling: dict[int, int] = {}
        """Moves that the network still carries -> their targets."""
        self._answers: dict[int, Moved] = {}
        """Moves that are complete, but too early."""
        self._cancelled: dict[int, None] = {}
        self._timer: Alarm | None = None

    def begin(self, move: Move, follows: tuple[int, int] | None) -> None:
        """A move begins. `follows`: start and end (ns of the loop's time) of the step that writes it."""
        self._travelling[move.id] = move.target.instance
        self._copies.begin(move, _now_ns(), follows)
        self._arm()

    def cancel(self, move: int) -> None:
        """A move is to be answered soon: if it is complete, now."""
        if answer := self._answers.pop(move, None):
            self._forget(move)
            self._deliver(answer)
        elif move in self._travelling:
            self._cancelled[move] = None

    def answered(self, event: Moved | MoveFailed) -> None:
        """The move is really over."""
        early = event.move in self._travelling and event.move not in self._cancelled
        if early and isinstance(event, Moved):
            self._answers[event.move] = event
            return
        self._forget(event.move)
        self._deliver(event)

    def lost(self, instance: int) -> None:
        """An instance is gone: nobody waits for moves to it, and those from it are held no longer."""
        gone = [move for move, target in self._travelling.items() if target == instance]
        for move in gone:
            del self._travelling[move]
            self._answers.pop(move, None)
            self._cancelled.pop(move, None)
        self._copies.lost(instance, _now_ns())
        self._arm()

    def close(self) -> None:
        """Deliver nothing more."""
        if self._timer is not None:
            self._timer.cancel()

    def _forget(self, move: int) -> None:
        self._cancelled.pop(move, None)
        if self._travelling.pop(move, None) is not None:
            self._copies.cancel(move, _now_ns())
            self._arm()

    def _arm(self) -> None:
        """Look again when the network has something to say."""
        if self._timer is not None:
            self._timer.cancel()
        due_ns = self._copies.next_ns
        self._timer = None if due_ns is None else self._alarms.at(due_ns / 1e9, self._look)

    def _look(self) -> None:
        arrived = self._copies.take(_now_ns())
        if arrived is not None and self._travelling.pop(arrived.move, None) is not None:
            answer = self._answers.pop(arrived.move, None)
            if answer is not None:
                self._deliver(answer)
        self._arm()


def _now_ns() -> int:
    return int(asyncio.get_running_loop().time() * 1e9)
