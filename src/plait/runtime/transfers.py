"""`Transfers`: the moves under way in a fleet, and one answer to each.

Move --> Pull to the target's worker --Pulled, PullFault--> Moved, MoveFailed
          source lost: Drop (it may have everything by now, and then says so)
          target lost: forgotten; nobody will answer
"""

from collections.abc import Callable
from dataclasses import dataclass

from plait.spec.event import Moved, MoveFailed
from plait.spec.move import Move
from plait.worker.wire import Drop, Pull, Pulled, PullFault, Source


@dataclass(frozen=True, slots=True)
class Transfer:
    """A move under way: who pulls, and from whose epoch."""

    target: int
    source: int
    source_identity: bytes


class Transfers:
    """Knows moves, not workers: it is told who is up, and says what to send to whom."""

    def __init__(self, send: Callable[[int, Pull | Drop], None]) -> None:
        """`send(instance, message)`: to the present worker of an instance."""
        self._send = send
        self._flying: dict[int, Transfer] = {}

    def begin(self, move: Move, source: Source | None) -> MoveFailed | None:
        """Send a move to its target, which is up.

        Args:
            source: the worker to pull from; None: it is lost.

        Returns:
            Its answer, if it can never be carried out.
        """
        if source is None:
            return MoveFailed(move.id, "the source is lost")
        self._flying[move.id] = Transfer(move.target.instance, move.source.instance, source.identity)
        self._send(move.target.instance, Pull(move, (source,)))
        return None

    def cancel(self, move: int) -> None:
        """Ask for the answer of a move, if it has none yet."""
        if transfer := self._flying.get(move):
            self._send(transfer.target, Drop(move, "cancelled"))

    def lost(self, instance: int) -> None:
        """The worker of an instance is gone. Moves to it are forgotten; those from it end there."""
        self._flying = {id: each for id, each in self._flying.items() if each.target != instance}
        for id, transfer in self._flying.items():
            if transfer.source == instance:
                self._send(transfer.target, Drop(id, "the source is lost"))

    def answered(self, instance: int, message: Pulled | PullFault) -> Moved | MoveFailed | None:
        """A worker answered; None if nobody waits for that any more."""
        transfer = self._flying.get(message.move)
        if transfer is None or transfer.target != instance:
            return None
        del self._flying[message.move]
        if isinstance(message, Pulled):
            return Moved(message.move)
        return MoveFailed(message.move, message.reason)
