"""What this machine has, and whether `plait serve` can run on it."""

import importlib.metadata
import json
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from huggingface_hub import constants

from plait import __version__
from plait.kernels.choice import choose
from plait.model.hub import KNOWN, cache, complete
from plait.spec.errors import UserError

REACH_S = 2.0
"""Seconds after which the hub counts as out of reach."""
PROBE_S = 120.0
"""Seconds that torch may take to be imported, on a cold disk too."""
ENGINE = ("torch", "transformers", "safetensors", "gguf")
ISAS = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "bf16", "sve")
"""Instruction sets worth naming, as Linux spells them."""
FEW_FILES = 1024
LITTLE_MEMORY_BYTES = 2 << 30
LITTLE_SHARED_BYTES = 64 << 20
PORT = 8000
"""Where `plait serve` listens when it is not told."""


class State(StrEnum):
    """How much a finding matters."""

    FINE = "fine"
    NOTE = "note"  # serving works; something is slower or not available
    MISSING = "missing"  # serving does not work without it


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    value: str
    state: State = State.FINE
    hint: str = ""
    """What to do about it."""


def examine() -> Iterator[Finding]:
    """Look at everything, quickest first. Nothing is changed; takes seconds, most of them for torch."""
    yield Finding("plait", __version__)
    yield Finding("python", f"{platform.python_version()} at {sys.executable}")
    yield from _cpu()
    yield _kernels()
    yield from _memory()
    yield _open_files()
    yield from _ports()
    yield from _cache()
    yield _hub()
    yield _gpus()
    yield _gpu_kernels()
    yield from _optional()
    yield from _engine()


def cpu_name() -> str:
    """Model of this machine's CPU, as far as it can be told."""
    return _cpu_facts().get("model name") or platform.processor() or platform.machine()


def _cpu_facts() -> dict[str, str]:
    """Keys and values of the first processor; empty where the system does not tell them."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().split("\n\n")[0].splitlines() if info.is_file() else []
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _cpu() -> Iterator[Finding]:
    """Model, cores that this process may use, and instruction sets."""
    name, flags = cpu_name(), set(_cpu_facts().get("flags", _cpu_facts().get("Features", "")).split())
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("cpu", f"{name}, {usable} of {os.cpu_count()} cores usable")
    yield Finding("instruction sets", ", ".join(isa for isa in ISAS if isa in flags) or "none that matter")


def _kernels() -> Finding:
    try:
        choice = choose()
    except UserError as error:
        return Finding("kernels", str(error), State.MISSING, "unset PLAIT_KERNELS, or name one of these")
    if choice.native is not None:
        return Finding("kernels", choice.why)
    if os.environ.get("PLAIT_KERNELS"):
        return Finding("kernels", choice.why, State.NOTE, "unset PLAIT_KERNELS for native kernels")
    hint = "install a C++ compiler and Python's headers, then install plait again with --force-reinstall"
    return Finding("kernels", choice.why, State.NOTE, hint)


def _memory() -> Iterator[Finding]:
    info = Path("/proc/meminfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    if "MemAvailable" in sizes:
        free, total = sizes["MemAvailable"], sizes["MemTotal"]
        value = f"{_gib(free)} available of {_gib(total)}"
        low = free < LITTLE_MEMORY_BYTES
        hint = "serve a smaller model, with one instance and a small --kv-tokens" if low else ""
        yield Finding("memory", value, State.NOTE if low else State.FINE, hint)
    else:
        hint = "give `plait serve` --kv-tokens: it cannot tell how much memory is free here"
        yield Finding("memory", "unknown", State.NOTE, hint)
    shared = Path("/dev/shm")
    if shared.is_dir():
        size = shutil.disk_usage(shared).free
        low = size < LITTLE_SHARED_BYTES
        hint = "in a container, start it with --shm-size=1g" if low else ""
        yield Finding("shared memory", f"{_gib(size)} free", State.NOTE if low else State.FINE, hint)


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < FEW_FILES:  # -1 is no limit
        hint = f"each caller takes one: run `ulimit -n {min(hard, 4096) if hard > 0 else 4096}` first"
        return Finding("open files", str(soft), State.NOTE, hint)
    return Finding("open files", str(soft) if soft >= 0 else "no limit")


def _ports() -> Iterator[Finding]:
    free = _bind(0)
    if isinstance(free, OSError):
        hint = "allow this process to listen on 127.0.0.1: workers and clients connect there"
        yield Finding("loopback", str(free), State.MISSING, hint)
        return
    yield Finding("loopback", f"a process may listen on 127.0.0.1, for example on port {free}")
    if isinstance(taken := _bind(PORT), OSError):
        hint = f"serve with --port {free}, or --port 0 for any free one"
        yield Finding(f"port {PORT}", str(taken), State.NOTE, hint)


def _bind(port: int) -> int | OSError:
    """The port that could be listened on, or why not."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return error
        return int(probe.getsockname()[1])


def _cache() -> Iterator[Finding]:
    folder = cache()
    above = next(path for path in (folder, *folder.parents) if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        hint = "set PLAIT_CACHE to a folder that can be written, or serve a model's folder"
        yield Finding("cache", f"{folder} cannot be written", State.NOTE, hint)
    else:
        yield Finding("cache", f"{folder}, {_gib(shutil.disk_usage(above).free)} free")
    models = sorted(folder.glob("models/*--*/config.json"))
    names = [path.parent.name.replace("--", "/") for path in models if complete(path.parent)]
    theirs = sorted(Path(constants.HF_HUB_CACHE).glob("models--*/snapshots/*/config.json"))
    names += [path.parts[-4].removeprefix("models--").replace("--", "/") for path in theirs]
    hint = "" if names else f"run `plait pull {next(iter(KNOWN))}`"
    yield Finding("models", ", ".join(names) or "none yet", State.FINE if names else State.NOTE, hint)


def _hub() -> Finding:
    if constants.HF_HUB_OFFLINE:
        return Finding("hub", "not asked, because HF_HUB_OFFLINE is set")
    answers: list[str] = []
    asking = threading.Thread(target=lambda: answers.append(_ask(constants.ENDPOINT)), daemon=True)
    asking.start()
    asking.join(REACH_S + 0.5)  # looking up a name knows no time limit of its own
    why = answers[0] if answers else f"no answer within {REACH_S:g} s"
    if not why:
        return Finding("hub", f"{constants.ENDPOINT} answers")
    hint = f"go online to pull any model; {', '.join(KNOWN)} comes from the package index too"
    return Finding("hub", f"{constants.ENDPOINT}: {why}", State.NOTE, hint)


def _ask(url: str) -> str:
    """Why nothing answers at this address; empty if something does."""
    request = urllib.request.Request(url, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=REACH_S).close()
    except urllib.error.HTTPError as error:
        error.close()  # refused, but by somebody who is there
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))
    return ""


def _gpus() -> Finding:
    command = shutil.which("nvidia-smi")
    if command is None:
        return Finding("gpu", "none")
    done = subprocess.run([command, "-L"], capture_output=True, text=True, timeout=30, check=False)
    names = [line.split(" (")[0] for line in done.stdout.splitlines() if line.startswith("GPU ")]
    if done.returncode or not names:
        hint = "run `nvidia-smi` and look at what it says: the driver may not be loaded"
        return Finding("gpu", "none that nvidia-smi can see", State.NOTE, hint)
    return Finding("gpu", ", ".join(names))


def _gpu_kernels() -> Finding:
    """Whether `--device cuda` works, asked of torch in another process: it would take memory of the GPU."""
    code = "from plait.kernels.choice import choose; print(choose('cuda').why)"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=PROBE_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        return Finding("gpu kernels", f"not in use: {error}", State.NOTE, "try `plait serve --device cuda`")
    said = (done.stdout if done.returncode == 0 else done.stderr).strip().rsplit("\n", 1)[-1]
    if done.returncode == 0:
        return Finding("gpu kernels", said)
    reason = said.partition(": ")[2] or said
    if shutil.which("nvidia-smi") is None:
        return Finding("gpu kernels", f"not in use: {reason}")
    return Finding(
        "gpu kernels", f"not in use: {reason}", State.NOTE, "see what it says, or serve on the CPU"
    )


def _optional() -> Iterator[Finding]:
    yield Finding("pyzmq", importlib.metadata.version("pyzmq"))
    for name, use in (
        ("ray", "only --cluster needs it"),
        ("nixl", "moves between hosts go in signed frames"),
    ):
        try:
            yield Finding(name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, f"not installed; {use}")


def _engine() -> Iterator[Finding]:
    """Packages that workers need, imported for real in another process."""
    command = [sys.executable, "-m", "plait.runtime.probe", *ENGINE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_S, check=True)
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
        hint = 'run `python -c "import torch"`, and install it again if that fails'
        yield Finding("engine", f"cannot be imported: {error}", State.MISSING, hint)
        return
    for name, said in json.loads(done.stdout).items():
        if "version" in said:
            yield Finding(name, said["version"])
        else:
            hint = 'pip install "plait[engine]"'
            yield Finding(name, said["error"], State.MISSING, hint)


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 30):.1f} GiB"
