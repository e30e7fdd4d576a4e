"""A server of ours, started as a user starts it, and stopped the same way."""

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

READY_S = 180
STOP_S = 60
PLAIT = [sys.executable, "-c", "from plait.cli.main import main; main()"]


@dataclass(frozen=True)
class Served:
    """A running server."""

    base: str
    """Its URL, without /v1."""
    folder: Path
    """Model and tokenizer."""
    name: str
    log: Path


@contextmanager
def served(folder: Path, name: str, log: Path, *options: str) -> Iterator[Served]:
    """`plait serve FOLDER` on a free port; yields once /ready is 200, ends with SIGTERM.

    Raises:
        RuntimeError: it did not become ready, or did not end in order; the log is named.
    """
    port = _free_port()
    command = [*PLAIT, "serve", str(folder), "--served-model-name", name, "--port", str(port), *options]
    with log.open("w") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=sink)
        try:
            base = f"http://127.0.0.1:{port}"
            _wait(base, process, log)
            yield Served(base, folder, name, log)
        finally:
            process.terminate()
            code = process.wait(STOP_S)
    if code != 0:
        raise RuntimeError(f"the server ended with {code}: see {log}")


def _wait(base: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until_s = time.monotonic() + READY_S
    while time.monotonic() < until_s:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode} before it was ready: see {log}")
        try:
            with urllib.request.urlopen(base + "/ready", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    raise RuntimeError(f"the server was not ready after {READY_S} s: see {log}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
