"""`SharedDialogue`: a `Dialogue` through memory that a worker shares with the other members of its group."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from plait.kernels import exchange
from plait.model.dialogue import Piece, Script
from plait.worker.passage import Shared

if TYPE_CHECKING:
    from plait.worker.exchange import Exchange


class SharedDialogue:
    """Of one step. Legend: F flows, L layers."""

    def __init__(self, owner: "Exchange", script: Script, ends: dict[tuple[int, bool], Shared]) -> None:
        """`ends`: of the links, by (member, whether it is sent to)."""
        self._owner = owner
        self._members: list[int] = []
        columns: list[NDArray[np.void]] = []
        for pieces, outgoing in (
            (script.asks, True),
            (script.questions, False),
            (script.answers, True),
            (script.replies, False),
        ):
            columns += [_column(piece, ends[piece.member, outgoing]) for piece in pieces]
            self._members += [piece.member for piece in pieces]
        self._asks, self._heard = len(script.asks), len(script.asks) + len(script.questions)
        self._flows_LF = np.stack(columns, axis=1) if columns else np.zeros((0, 0), exchange.FLOW)
        self.sent_bytes = sum(_bytes(piece) for piece in script.asks + script.answers)
        """In each layer."""

    def ask(self, layer: int) -> None:
        """See `Dialogue`."""
        if self._asks:
            self._owner.carry(self._flows_LF[layer, : self._asks], self._members, wait=False)

    def hear(self, layer: int) -> None:
        """See `Dialogue`."""
        self._owner.layer = layer
        if self._heard:
            self._owner.carry(self._flows_LF[layer, : self._heard], self._members)

    def answer(self, layer: int) -> None:
        """See `Dialogue`."""
        if len(self._members) > self._heard:
            self._owner.carry(self._flows_LF[layer, self._heard :], self._members[self._heard :])
        self._owner.sent_bytes += self.sent_bytes


def _column(piece: Piece, end: Shared) -> NDArray[np.void]:
    """The flow of a piece in each layer."""
    strip = piece.strip
    flows_L = np.zeros(len(strip.at_L), exchange.FLOW)
    flows_L[:] = end.flow(0, _bytes(piece))
    flows_L["address"] = strip.at_L + piece.first * strip.row_bytes
    return flows_L


def _bytes(piece: Piece) -> int:
    return (piece.past - piece.first) * piece.strip.row_bytes
