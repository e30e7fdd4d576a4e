"""`Transfers`: the moves under way in a fleet, and one answer to each.

Move --> Pull to each of the target's workers --Pulled, PullFault--> Moved, MoveFailed once all have answered
          source lost: Drop (they may have everything by now, and then say so)
          one of them fails: Drop to the others; slots are free only when none of them writes any more
          target lost: forgotten; nobody will answer
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from plait.spec.event import Moved, MoveFailed
from plait.spec.move import Move
from plait.worker.wire import Drop, Pull, Pulled, PullFault, Source


@dataclass(slots=True)
class Transfer:
    """A move under way: from where to where, and who of the target's workers has not answered."""

    target: int
    source: int
    owing: dict[bytes, None] = field(default_factory=dict)
    fault: str | None = None
    """Why the first of them that failed did."""


class Transfers:
    """Knows moves, not workers: it is told who is up, and says what to send to whom."""

    def __init__(self, send: Callable[[bytes, Pull | Drop], None]) -> None:
        """`send(identity, message)`: to a worker of this epoch."""
        self._send = send
        self._flying: dict[int, Transfer] = {}

    def begin(self, move: Move, targets: Sequence[bytes], sources: tuple[Source, ...]) -> MoveFailed | None:
        """Send a move to its target, which is up.

        Args:
            targets: the target's workers, in the order of their ranks.
            sources: the workers to pull from; none: the source is lost.

        Returns:
            Its answer, if it can never be carried out.
        """
        if not sources:
            return MoveFailed(move.id, "the source is lost")
        owing = dict.fromkeys(targets)
        self._flying[move.id] = Transfer(move.target.instance, move.source.instance, owing)
        for turn, identity in enumerate(targets):
            self._send(identity, Pull(move, sources, turn))
        return None

    def cancel(self, move: int) -> None:
        """Ask for the answer of a move, if it has none yet."""
        if move in self._flying:
            self._drop(move, "cancelled")

    def lost(self, instance: int) -> None:
        """The workers of an instance are gone. Moves to it are forgotten; those from it end there."""
        self._flying = {id: each for id, each in self._flying.items() if each.target != instance}
        for id, transfer in self._flying.items():
            if transfer.source == instance:
                self._drop(id, "the source is lost")

    def answered(self, identity: bytes, message: Pulled | PullFault) -> Moved | MoveFailed | None:
        """A worker answered. Returns the move's answer if this was the last one that it waited for."""
        transfer = self._flying.get(message.move)
        if transfer is None or identity not in transfer.owing:
            return None
        del transfer.owing[identity]
        if isinstance(message, PullFault) and transfer.fault is None:
            transfer.fault = message.reason
            self._drop(message.move, "another part of it failed")
        if transfer.owing:
            return None
        del self._flying[message.move]
        return Moved(message.move) if transfer.fault is None else MoveFailed(message.move, transfer.fault)

    def _drop(self, move: int, reason: str) -> None:
        for identity in self._flying[move].owing:
            self._send(identity, Drop(move, reason))
