"""`Parcel`: as much of a move as is asked for at once; each one fits the room that there is for it."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from plait.spec.move import Move
from plait.spec.step import Extent, Span
from plait.worker.layout import Interval, Part
from plait.worker.store import BLOCK, Store


@dataclass(frozen=True, slots=True)
class Parcel:
    """Some tokens of some layers and heads."""

    layers: Interval
    heads: Interval
    source_T: NDArray[np.int32]
    """Slots there."""
    target_T: NDArray[np.int32]
    """Slots here."""
    whole: bool
    """In the form of blocks."""

    @property
    def extents(self) -> tuple[Extent, ...]:
        """The slots there, in runs."""
        breaks = np.flatnonzero(np.diff(self.source_T) != 1) + 1
        firsts = np.concatenate(([0], breaks))
        counts = np.diff(np.concatenate((firsts, [len(self.source_T)])))
        slots = self.source_T[firsts].tolist()
        return tuple(Extent(slot, count) for slot, count in zip(slots, counts.tolist(), strict=True))


def parcels(part: Part, move: Move, store: Store, room_bytes: int, *, alike: bool) -> Iterator[Parcel]:
    """Cut a part of a move, layer after layer.

    Args:
        store: of the target.
        room_bytes: of one parcel; at least one block of one layer.
        alike: the source's store has the form of the target's.
    """
    box = part.box
    source_T, target_T = (_slots(span, box.positions) for span in (move.source, move.target))
    whole = alike and store.blocked and _aligned(source_T) and _aligned(target_T)
    most = _tokens(store, box.heads, whole, room_bytes)
    if len(source_T) > most:
        layers = 1
    else:
        layer_bytes = store.layer_bytes(box.heads, len(source_T), whole)
        layers = 1 if move.after else max(1, room_bytes // layer_bytes)
    for first in range(box.layers.first, box.layers.past, layers):
        some = Interval(first, min(first + layers, box.layers.past))
        for at in range(0, len(source_T), most):
            yield Parcel(some, box.heads, source_T[at : at + most], target_T[at : at + most], whole)


def _tokens(store: Store, heads: Interval, whole: bool, room_bytes: int) -> int:
    """Tokens of a layer that fit the room, in whole blocks."""
    blocks = room_bytes // store.layer_bytes(heads, BLOCK, whole)
    assert blocks, "there is no room for one block"
    return blocks * BLOCK


def _slots(span: Span, positions: tuple[Interval, ...]) -> NDArray[np.int32]:
    """The slots of positions."""
    runs = [np.arange(e.slot, e.slot + e.count, dtype=np.int32) for e in span.extents]
    slots_T = np.concatenate(runs)
    return np.concatenate([slots_T[part.first - span.first : part.past - span.first] for part in positions])


def _aligned(slots_T: NDArray[np.int32]) -> bool:
    """They are blocks from their first slot on, the last one perhaps not to its end."""
    at = np.arange(len(slots_T))
    return bool(
        (slots_T % BLOCK == at % BLOCK).all()
        and (slots_T // BLOCK == slots_T[at - at % BLOCK] // BLOCK).all()
    )
