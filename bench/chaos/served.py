"""`Served`: `plait serve` as a process of its own, and what the system says of it and its workers."""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

START_S, LEAVE_S = 180.0, 30.0
"""Longest wait for a server to listen, and for its processes to be gone."""
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
NAME = "tiny"
"""Of the model, for clients."""


class Served:
    """A running server."""

    def __init__(self, folder: Path, options: Sequence[str], log: Path, port: int = 0) -> None:
        """Returns when it listens.

        Args:
            options: of `plait serve`.
            log: file that its words and its workers' are added to.

        Raises:
            RuntimeError: it ended or said nothing; with the end of its log.
        """
        command = [sys.executable, "-m", "plait", "serve", str(folder), "--served-model-name", NAME]
        self._log = log
        with log.open("ab") as words:
            self._process = subprocess.Popen(
                [*command, "--port", str(port), *options], stdout=subprocess.PIPE, stderr=words
            )
        self.url = self._listens()
        """Root of the server."""

    @property
    def pid(self) -> int:
        """Of the server itself."""
        return self._process.pid

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.url.rsplit(":", 1)[1])

    @property
    def words(self) -> str:
        """What it and its workers wrote to their log."""
        return self._log.read_text(errors="replace")

    def processes(self) -> tuple[int, ...]:
        """Its process and all below it."""
        return tuple(family(self.pid))

    def kill(self) -> None:
        """End the server itself, which cannot do anything about it."""
        self._process.kill()
        self._over()

    def stop(self) -> int:
        """Ask it to leave; returns its exit status. What is left after a while is killed."""
        processes = self.processes()
        self._process.terminate()
        try:
            self._process.wait(LEAVE_S)
        except subprocess.TimeoutExpired:
            for pid in processes:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        return self._over()

    def _over(self) -> int:
        assert self._process.stdout is not None
        self._process.stdout.close()
        return self._process.wait()

    def _listens(self) -> str:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], START_S)
        line = self._process.stdout.readline() if ready else b""
        if not line.startswith(b"http"):
            self.kill()
            raise RuntimeError(f"plait serve does not listen:\n{self.words[-3000:]}")
        return line.decode().strip()


@contextmanager
def served(folder: Path, options: Sequence[str], log: Path) -> Iterator[Served]:
    """A server until the block ends."""
    server = Served(folder, options, log)
    try:
        yield server
    finally:
        server.stop()


def family(pid: int) -> Iterator[int]:
    """A process and all below it."""
    yield pid
    with suppress(FileNotFoundError, ProcessLookupError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                yield from family(int(child))


def resident_bytes(processes: Sequence[int]) -> int:
    """Memory that they have in use, together. Raises FileNotFoundError where one is gone."""
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in processes) * PAGE_BYTES


def descriptors(processes: Sequence[int]) -> int:
    """That they have open, together. Raises FileNotFoundError where one is gone."""
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in processes)


def others_s(processes: Sequence[int]) -> float:
    """Seconds of all cores since the start of the system that went to other processes than these."""
    words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    busy = sum(int(words[at]) for at in (0, 1, 2, 5, 6, 7))  # neither idle nor waiting for a disk
    own = sum(
        sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
        for pid in processes
    )
    return (busy - own) / os.sysconf("SC_CLK_TCK")


def alive(pid: int) -> bool:
    """Whether a process runs: one that only waits to be asked how it ended does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(processes: Sequence[int], within_s: float) -> tuple[int, ...]:
    """Waits until none of them runs, at most so long; returns those that still do."""
    past_s = time.monotonic() + within_s
    while (left := tuple(filter(alive, processes))) and time.monotonic() < past_s:
        time.sleep(0.02)
    return left
