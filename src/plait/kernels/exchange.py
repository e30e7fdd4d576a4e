"""Bytes between processes of one host through memory that they share: passages, each one way and in order.

Legend: F flows.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from plait.kernels.choice import choose

HEAD_BYTES = 128
"""Counters of a passage, zeros at first, before its room."""
FLOW = np.dtype(
    [(name, np.int64) for name in ("passage", "capacity", "outgoing", "address", "count", "done")]
)
"""Bytes on their way: of which passage and which way, from or to where, how many, and how many are done."""
DONE, LATE = -1, -2
Flows = NDArray[np.void]
Mover = Callable[[int, int, int, bool, float], int]


def available() -> bool:
    """There are native bodies; nothing else can share memory safely."""
    return choose().native is not None


def exchange(flows_F: Flows, turn: int, *, spin: bool, within_s: float) -> int:
    """Move the bytes of flows, those of one passage and way one after another.

    Args:
        flows_F: of `FLOW`; `done` is counted up.
        turn: positive, higher than those before; both ends of a passage count the same turns.
        spin: each process has a core of its own.
        within_s: 0: move only what can be moved at once.

    Returns:
        DONE, LATE, or the index of a flow whose other end has abandoned the turn.
    """
    assert flows_F.dtype == FLOW, "flows as this module lays them out"
    return mover()(flows_F.ctypes.data, len(flows_F), turn, spin, within_s)


def mover() -> Mover:
    """What `exchange` calls, for those who exchange often and know what they do: (address of flows, how many,
    turn, spin, within_s) -> state."""
    native = choose().native
    assert native is not None, "there is no reference that shares memory"
    body: Mover = native.aside.exchange
    return body


def pass_turn(passage: int, turn: int, *, writer: bool) -> None:
    """This end of a passage is done with a turn and all before it, or has abandoned it."""
    native = choose().native
    assert native is not None, "there is no reference that shares memory"
    native.aside.pass_turn(passage, writer, turn)
