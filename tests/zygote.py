"""Workers that start in a tenth of a second: forked from a process that has imported all they need.

Importing torch and transformers takes a worker three seconds of a core, and tests start hundreds of workers.
What a forked one runs is `plait.worker` from its `main` on, in a process of its own, with the stdin, stdout
and stderr that it would have. (The tests of `plait serve`, of the server and of `Engine` start workers as
users do.)

    test process --socket: config, stdin, stdout, stderr--> zygote --fork--> worker
                 <----- pid, later its exit status --------'
"""

import asyncio
import contextlib
import importlib
import os
import select
import signal
import socket
import subprocess
import sys

from plait.runtime.launch import environment
from plait.worker.config import WorkerConfig

IMPORTED = "plait.worker.process", "transformers.models.llama.modeling_llama"


class Zygote:
    """The process to fork from; one per test process."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.zygote", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=environment(1),
                start_new_session=True,
            )

    def fork(self, stdin: int) -> socket.socket:
        """Start a worker; its pid and its exit status come from what is returned."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            socket.send_fds(self._ours, [b"."], [stdin, 1, 2, theirs.fileno()])
        return ours

    def close(self) -> None:
        """No more workers."""
        self._ours.close()
        self._process.wait()


class ForkedProcess:
    """A worker. See `Started`."""

    def __init__(self, pid: int, told: socket.socket, stdin: int) -> None:
        self.pid = pid
        self._told, self._stdin = told, stdin

    async def wait(self) -> int:
        """See `Started`."""
        status = int(await asyncio.get_running_loop().sock_recv(self._told, 64))
        self._told.close()
        os.close(self._stdin)
        return status

    async def kill(self) -> None:
        """See `Started`."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


class ForkLauncher:
    """See `Launcher`."""

    def __init__(self, zygote: Zygote) -> None:
        self._zygote = zygote

    async def launch(self, config: WorkerConfig) -> ForkedProcess:
        """See `Launcher`."""
        reading, writing = os.pipe()
        told = self._zygote.fork(reading)
        os.close(reading)
        os.write(writing, config.to_line())
        told.setblocking(False)
        pid = int(await asyncio.get_running_loop().sock_recv(told, 64))
        return ForkedProcess(pid, told, writing)

    async def close(self) -> None:
        """See `Launcher`."""


def serve(orders: socket.socket) -> None:
    """Fork a worker for every order, and tell how each one ended, until the test process is gone."""
    for name in IMPORTED:
        importlib.import_module(name)
    workers: dict[int, tuple[int, socket.socket]] = {}
    """Descriptor of a worker's process -> its pid, and who waits for it."""
    poller = select.poll()
    poller.register(orders, select.POLLIN)
    while True:
        for file, _ in poller.poll():
            if file in workers:
                poller.unregister(file)
                see_off(file, *workers.pop(file))
                continue
            _, files, _, _ = socket.recv_fds(orders, 1, 4)
            if not files:
                return
            pid = os.fork()
            if pid == 0:
                orders.close()
                work(files)
            for each in files[:3]:
                os.close(each)
            told = socket.socket(fileno=files[3])
            told.send(b"%d" % pid)
            poller.register(ended := os.pidfd_open(pid), select.POLLIN)
            workers[ended] = pid, told


def see_off(ended: int, pid: int, told: socket.socket) -> None:
    """Tell how a worker ended."""
    os.close(ended)
    _, status = os.waitpid(pid, 0)
    with told, contextlib.suppress(OSError):  # nobody waits any more
        told.send(b"%d" % os.waitstatus_to_exitcode(status))


def work(files: list[int]) -> None:
    """Be a worker; never returns."""
    os.setsid()
    for file, standard in zip(files, (0, 1, 2, None), strict=True):
        if standard is not None:
            os.dup2(file, standard)
        os.close(file)
    status = 1
    try:
        status = importlib.import_module("plait.worker.process").main()
        sys.stdout.flush()
    except SystemExit as left:
        status = int(left.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        raise
    finally:
        os._exit(status)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
