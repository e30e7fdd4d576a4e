"""`SharedDialogue`: a `Dialogue` through memory that a worker shares with the other members of its group."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from plait.kernels import exchange
from plait.model.dialogue import Piece, Script
from plait.worker.passage import Shared

LOOK_S = 0.02
"""A wait looks this often whether its peers are alive."""
if TYPE_CHECKING:
    from plait.worker.exchange import Exchange


class SharedDialogue:
    """Of steps that say the same over the same links. Legend: F flows, L layers."""

    def __init__(
        self,
        owner: "Exchange",
        script: Script,
        ends: dict[tuple[int, bool], Shared],
    ) -> None:
        """`ends`: of the links, by (member, whether it is sent to)."""
        self.script, self.ends = script, ends
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
        self._base, self._move, self._turn = self._flows_LF.ctypes.data, exchange.mover(), (0, False)
        self.sent_bytes = sum(_bytes(piece) for piece in script.asks + script.answers)
        """In each layer."""

    def begin(self, turn: int, *, spin: bool) -> None:
        """Of a step; see `exchange`."""
        self._turn = turn, spin
        self._flows_LF["done"] = 0

    def ask(self, layer: int) -> None:
        """See `Dialogue`."""
        if self._asks:
            self._move(
                self._at(layer), self._asks, *self._turn, 0.0
            )  # what fails is seen when it is waited for

    def hear(self, layer: int) -> None:
        """See `Dialogue`."""
        self._carry(layer, 0, self._heard)

    def answer(self, layer: int) -> None:
        """See `Dialogue`."""
        self._carry(layer, self._heard, len(self._members))
        self._owner.sent_bytes += self.sent_bytes

    def _at(self, layer: int, first: int = 0) -> int:
        return self._base + (layer * len(self._members) + first) * exchange.FLOW.itemsize

    def _carry(self, layer: int, first: int, past: int) -> None:
        if first == past:
            return
        state = self._move(self._at(layer, first), past - first, *self._turn, LOOK_S)
        if state != exchange.DONE:
            self._owner.layer = layer
            self._owner.carry(self._flows_LF[layer, first:past], self._members[first:past], state)


def _column(piece: Piece, end: Shared) -> NDArray[np.void]:
    """The flow of a piece in each layer."""
    strip = piece.strip
    flows_L = np.zeros(len(strip.at_L), exchange.FLOW)
    flows_L[:] = end.flow(0, _bytes(piece))
    flows_L["address"] = strip.at_L + piece.first * strip.row_bytes
    return flows_L


def _bytes(piece: Piece) -> int:
    return (piece.past - piece.first) * piece.strip.row_bytes
