"""What turns pieces into the JSON of one endpoint."""

from typing import Any, Protocol

from plait.runtime.ask import Piece


class Reply(Protocol):
    """The answer to one request, whole or chunk by chunk."""

    def chunks(self, index: int, piece: Piece) -> list[dict[str, Any]]:
        """The chunks that a piece of sequence `index` becomes in a stream."""

    def last_chunks(self) -> list[dict[str, Any]]:
        """What a stream says when all sequences are finished."""

    def add(self, index: int, piece: Piece) -> None:
        """Take in a piece of sequence `index` for the whole answer."""

    def whole(self) -> dict[str, Any]:
        """The whole answer."""
