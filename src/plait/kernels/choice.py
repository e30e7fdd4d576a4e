"""Which kernels this process uses, and why."""

import os
from dataclasses import dataclass
from types import ModuleType

try:
    from plait import _native
except ImportError:
    _native = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True)
class Choice:
    """The kernels in use."""

    native: ModuleType | None
    """The compiled module; None: the torch references stand in."""
    why: str
    """For people: what was chosen and for what reason."""


def choose() -> Choice:
    """Native kernels where they were built, unless PLAIT_KERNELS=reference."""
    if os.environ.get("PLAIT_KERNELS") == "reference":
        return Choice(None, "torch references, because PLAIT_KERNELS=reference")
    if _native is None:
        return Choice(None, "torch references (slow), because plait was installed without a C++ compiler")
    return Choice(_native, f"native C++ for {_native.isa()}, the best that this CPU runs")
