"""`RayLauncher`: Ray decides where workers run and notices when their nodes die; nothing more.

A small actor on each node starts the same `python -m plait.worker` that `LocalLauncher` starts.
Steps and answers never pass through Ray: workers connect to the driver themselves.
"""

import asyncio
import logging
import os
import subprocess
import sys
from typing import Any

from plait.runtime.launch import environment
from plait.spec.errors import UserError
from plait.worker.config import WorkerConfig

log = logging.getLogger(__name__)


class Starter:
    """Runs inside a Ray actor: one worker process on that actor's node."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, line: bytes, threads: int) -> int:
        """Start the worker with its configuration; returns its process id."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "plait.worker"],
            stdin=subprocess.PIPE,
            env=environment(threads),
            start_new_session=True,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(line)
        self._process.stdin.flush()
        return self._process.pid

    def wait(self) -> int:
        """Returns the worker's exit status once it is gone."""
        assert self._process is not None
        return self._process.wait()

    def kill(self) -> None:
        """End the worker now."""
        if self._process is not None:
            self._process.kill()


class RayProcess:
    """A worker that an actor started. See `Started`."""

    def __init__(self, ray: Any, actor: Any, pid: int) -> None:
        self._ray = ray
        self._actor = actor
        self.pid = pid

    async def wait(self) -> int:
        """See `Started`. -1: its node or its actor is gone."""
        try:
            return int(await self._actor.wait.remote())
        except self._ray.exceptions.RayError as error:
            log.warning("a worker's node is lost: %s", error)
            return -1
        finally:
            self._ray.kill(self._actor)

    async def kill(self) -> None:
        """See `Started`."""
        try:
            await self._actor.kill.remote()
        except self._ray.exceptions.RayError as error:
            log.warning("a worker to be killed is gone with its node: %s", error)


class RayLauncher:
    """Workers on a Ray cluster: instances are spread over nodes by one placement group, each on one node."""

    def __init__(self, address: str, sizes: list[int], threads: int) -> None:
        """`address`: "local" starts Ray on this host; anything else is an address of `ray start`.

        Args:
            sizes: processes of each instance.

        Raises:
            UserError: Ray is not installed, or the cluster cannot be reached.
        """
        try:
            import ray
            from ray.util.placement_group import placement_group
            from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
        except ImportError as error:
            raise UserError('--cluster needs Ray: pip install "plait[cluster]"') from error
        self._ray = ray
        self._threads = threads
        self._connected = not ray.is_initialized()
        if self._connected:
            self._connect(address, sum(sizes) * threads)
        self._group = placement_group([{"CPU": threads * size} for size in sizes], strategy="SPREAD")
        self._at = PlacementGroupSchedulingStrategy

    def _connect(self, address: str, cpus: int) -> None:
        settings: dict[str, Any] = {"log_to_driver": True, "include_dashboard": False}
        try:
            if address == "local":
                self._ray.init(address="local", num_cpus=max(cpus, os.cpu_count() or 1), **settings)
            else:
                self._ray.init(address=address, **settings)
        except (ConnectionError, ValueError) as error:
            raise UserError(
                f"no Ray cluster at {address}: start one with `ray start --head`, or use --cluster local"
            ) from error

    async def launch(self, config: WorkerConfig) -> RayProcess:
        """See `Launcher`. Waits until the cluster has room."""
        await asyncio.wrap_future(self._group.ready().future())
        strategy = self._at(self._group, placement_group_bundle_index=config.instance)
        remote = self._ray.remote(num_cpus=self._threads, max_concurrency=2, scheduling_strategy=strategy)
        actor = remote(Starter).remote()
        pid = await actor.start.remote(config.to_line(), self._threads)
        return RayProcess(self._ray, actor, pid)

    async def close(self) -> None:
        """See `Launcher`."""
        from ray.util.placement_group import remove_placement_group

        remove_placement_group(self._group)
        if self._connected:
            await asyncio.to_thread(self._ray.shutdown)
