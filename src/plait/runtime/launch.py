"""Starting `python -m plait.worker` somewhere. `LocalLauncher`: on this host, as child processes."""

import asyncio
import contextlib
import os
import socket
import sys
from typing import Protocol

from plait.worker.config import WorkerConfig


def environment(threads: int) -> dict[str, str]:
    """What a worker with so many threads starts with: what this process has, and for its allocator that it
    keeps memory which a step gave back for the next one (a fresh page costs a fault each time), and takes it
    in large pages where the system gives them."""
    kept = {
        "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
        "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    }
    return kept | os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


def loopback() -> dict[str, str]:
    """For processes of torch.distributed on one host: sockets that know no secret are reached from here only.
    Who has named another interface in the environment means it."""
    names = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    wanted = dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), names[0]) if names else {}
    return {key: os.environ.get(key, name) for key, name in wanted.items()}


class Started(Protocol):
    """A worker process that was started."""

    async def wait(self) -> int:
        """Returns its exit status once it is gone."""

    async def kill(self) -> None:
        """End it now, whatever it does; no error if it is gone."""


class Launcher(Protocol):
    """Starts worker processes."""

    async def launch(self, config: WorkerConfig) -> Started:
        """Start one worker."""

    async def close(self) -> None:
        """Give back what was reserved for workers."""


class LocalProcess:
    """A child process. Its stdin stays open: when this process dies it closes, and the worker leaves."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.pid = process.pid

    async def wait(self) -> int:
        """See `Started`."""
        status = await self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            await self._process.stdin.wait_closed()
        return status

    async def kill(self) -> None:
        """See `Started`."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()


class LocalLauncher:
    """Child processes of this one."""

    def __init__(self, module: str = "plait.worker") -> None:
        """`module`: the program that they run."""
        self._module = module

    async def launch(self, config: WorkerConfig) -> LocalProcess:
        """See `Launcher`."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            self._module,
            stdin=asyncio.subprocess.PIPE,
            env=environment(config.model.threads),
            start_new_session=True,  # a terminal's Ctrl-C is for the driver, which lets workers finish
        )
        assert process.stdin is not None
        process.stdin.write(config.to_line())
        await process.stdin.drain()
        return LocalProcess(process)

    async def close(self) -> None:
        """See `Launcher`."""
