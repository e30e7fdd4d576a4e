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
    pid: int

    @property
    def workers(self) -> list[int]:
        """Process ids of its workers, the oldest first."""
        found = subprocess.run(["pgrep", "-P", str(self.pid)], capture_output=True, text=True, check=False)
        return sorted(int(each) for each in found.stdout.split() if _is_worker(each))

    def metric(self, name: str) -> float:
        """Sum of a metric's values."""
        with urllib.request.urlopen(self.base + "/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return sum(
            float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0].split(" ")[0] == name
        )


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
            yield Served(base, folder, name, log, process.pid)
        finally:
            process.terminate()
            code = process.wait(STOP_S)
    if code != 0:
        raise RuntimeError(f"the server ended with {code}: see {log}")


def _is_worker(pid: str) -> bool:
    command = Path(f"/proc/{pid}/cmdline")
    return command.exists() and b"plait.worker" in command.read_bytes()


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
