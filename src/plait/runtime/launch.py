"""Starting `python -m plait.worker` somewhere. `LocalLauncher`: on this host, as child processes."""

import asyncio
import contextlib
import os
import sys
from typing import Protocol

from plait.worker.config import WorkerConfig


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

    async def launch(self, config: WorkerConfig) -> LocalProcess:
        """See `Launcher`."""
        threads = str(config.model.threads)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "plait.worker",
            stdin=asyncio.subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
            start_new_session=True,  # a terminal's Ctrl-C is for the driver, which lets workers finish
        )
        assert process.stdin is not None
        process.stdin.write(config.to_line())
        await process.stdin.drain()
        return LocalProcess(process)

    async def close(self) -> None:
        """See `Launcher`."""
