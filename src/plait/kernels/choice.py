"""Which kernels this process uses, and why."""

import importlib.util
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
    """Instruction set of the native kernels, "triton" or "reference"."""
    why: str
    """For people: what was chosen and for what reason."""


def choose(device: str = "cpu") -> Choice:
    """The best native kernels that this CPU runs, or what PLAIT_KERNELS names (for tests and doubts).

    On a GPU these are always Triton's.

    Args:
        device: cpu, cuda or cuda:N.

    Raises:
        UserError: PLAIT_KERNELS names kernels that this process cannot run, or the device is not there.
    """
    if device != "cpu":
        return _on_gpu(device)
    wanted = os.environ.get("PLAIT_KERNELS")
    if wanted == "triton" and os.environ.get("TRITON_INTERPRET") == "1":
        return Choice(None, "triton", "Triton's interpreter (very slow), because PLAIT_KERNELS=triton")
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


def _on_gpu(device: str) -> Choice:
    """Triton's kernels on this GPU.

    Raises:
        UserError: there is no such device, or no Triton.
    """
    import torch  # not needed to choose for a CPU

    kind, _, index = device.partition(":")
    if kind != "cuda" or (":" in device and not index.isdigit()):
        raise UserError(f"device is {device}; choose cpu, cuda or cuda:N", "device")
    if torch.version.cuda is None:
        raise UserError(
            f"device is {device}, but this torch ({torch.__version__}) is built for CPUs only: install torch "
            "for CUDA, or use --device cpu",
            "device",
        )
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(index or 0) >= found:
        raise UserError(f"device is {device}, but torch finds {found} GPUs here: use --device cpu", "device")
    if importlib.util.find_spec("triton") is None:
        raise UserError(f'device {device} needs Triton: pip install "plait[gpu]"', "device")
    return Choice(
        None, "triton", f"Triton on {torch.cuda.get_device_name(device)}, because of --device {device}"
    )
