"""Which kernels this process uses, and why."""

import os
from dataclasses import dataclass

from plait.kernels.calls import Calls
from plait.spec.errors import UserError

try:
    from plait import _native as _module
except ImportError:  # built without a compiler: the references stand in
    _native = None
else:
    _native = Calls(_module)


@dataclass(frozen=True, slots=True)
class Choice:
    """The kernels in use."""

    native: Calls | None
    """The compiled module; None: the torch references stand in."""
    isa: str
    """Instruction set of the native kernels, or "reference"."""
    why: str
    """For people: what was chosen and for what reason."""


def choose() -> Choice:
    """The best native kernels that this CPU runs, or what PLAIT_KERNELS names (for tests and doubts).

    Raises:
        UserError: PLAIT_KERNELS names kernels that this process cannot run.
    """
    wanted = os.environ.get("PLAIT_KERNELS")
    if wanted == "reference":
        return Choice(None, "reference", "torch references (slow), because PLAIT_KERNELS=reference")
    known = [] if _native is None else _native.isas()
    if wanted and wanted not in known:
        raise UserError(
            f"PLAIT_KERNELS is {wanted}; here it may be one of {', '.join([*known, 'reference'])}"
        )
    if _native is None:
        why = "torch references (slow), because plait was installed without a C++ compiler"
        return Choice(None, "reference", why)
    if wanted:
        return Choice(_native, wanted, f"native C++ for {wanted}, because of PLAIT_KERNELS")
    return Choice(_native, known[0], f"native C++ for {known[0]}, the best of {', '.join(known)} on this CPU")
