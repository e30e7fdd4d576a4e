"""`Crew`: the ranks of a trainer. It starts them, gives all of them the same orders, and gathers the replies.

order --> rank 0, rank 1, ... --> one reply of each, or a sentence that says which rank is gone and where
"""

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from plait.runtime.launch import environment, loopback
from plait.spec.errors import EngineFailure, UserError
from plait.training.device import Backend
from plait.training.grid import Grid
from plait.training.orders import (
    LENGTH,
    Alive,
    Failed,
    Leave,
    ModelPlan,
    Order,
    RankConfig,
    Ready,
    Reply,
    encoded,
    reply_of,
)

ECHO_S = 5.0
"""Seconds in which the other ranks say what they saw of a fault."""


@dataclass(frozen=True, slots=True)
class CrewConfig:
    """How many ranks there are and what they hold."""

    ranks: int
    """Places of a block, each of which holds a stage of every model."""
    models: tuple[ModelPlan, ...]
    blocks: int = 1
    """That train on different samples and sum up their gradients."""
    tp: int = 1
    """Processes in the place of each rank, which share its layers."""
    backend: Backend = Backend.GLOO
    threads: int = 1
    """Of each rank."""
    patience_s: float = 120.0
    """Longest that a rank waits for another, in seconds: no action may take longer."""
    order_s: float = 3600.0
    """Longest that an order may take, in seconds."""
    start_s: float = 300.0
    """Longest that loading may take, in seconds."""
    recompute: bool = False
    """Ranks keep the inputs of stages alone and compute forwards again."""
    resume: Path | None = None
    """Checkpoint to start from."""

    @property
    def grid(self) -> Grid:
        """Which process holds what."""
        return Grid(self.ranks, self.tp, self.blocks)


class Crew:
    """See the module. Lives in one event loop; `close` ends every process."""

    def __init__(self, config: CrewConfig) -> None:
        self.config = config
        self.processes: list[asyncio.subprocess.Process] = []
        self.weight_bytes: tuple[int, ...] = ()
        """Of each rank."""
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    async def start(self) -> None:
        """Returns when all ranks have loaded their stages.

        Raises:
            UserError: a model cannot be trained so; says why.
            EngineFailure: a rank did not come up.
        """
        config = self.config
        self._folder = tempfile.TemporaryDirectory(prefix="plait-crew-")
        meeting = str(Path(self._folder.name) / "meeting")
        resume = None if config.resume is None else str(config.resume)
        total = config.grid.size
        for rank in range(total):
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "plait.training",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=environment(config.threads) | loopback(),
                start_new_session=True,
            )
            self.processes.append(process)
            told = RankConfig(
                rank,
                total,
                config.ranks,
                meeting,
                config.models,
                config.threads,
                config.patience_s,
                config.recompute,
                resume,
                config.tp,
                config.backend,
            )
            body = msgspec.msgpack.encode(told)
            await self._write(rank, LENGTH.pack(len(body)) + body)
        replies = await self._replies(range(total), config.start_s, "loading the models")
        self.weight_bytes = tuple(reply.weight_bytes for reply in replies if isinstance(reply, Ready))

    async def order(self, order: Order) -> list[Reply]:
        """Have all ranks carry out an order; their replies in the order of ranks.

        Raises:
            UserError: what was asked for cannot be done.
            EngineFailure: a rank is gone or too late; the crew is of no use any more.
        """
        return await self.orders(dict.fromkeys(range(len(self.processes)), order))

    async def orders(self, orders: Mapping[int, Order]) -> list[Reply]:
        """The same with an order for each of these ranks, all of one kind."""
        for rank, order in orders.items():
            await self._write(rank, encoded(order))
        kind = type(next(iter(orders.values()))).__name__
        return await self._replies(tuple(orders), self.config.order_s, f"the order {kind}")

    async def close(self) -> None:
        """Let the ranks go; returns when they are gone."""
        for process in self.processes:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                process.stdin.write(encoded(Leave()))
                await process.stdin.drain()
            process.stdin.close()
        for process in self.processes:
            try:
                await asyncio.wait_for(process.wait(), 5)
            except TimeoutError:
                process.kill()
                await process.wait()
        self.processes.clear()
        if self._folder is not None:
            self._folder.cleanup()

    async def _write(self, rank: int, frame: bytes) -> None:
        stdin = self.processes[rank].stdin
        assert stdin is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # its reply will be missing
            stdin.write(frame)
            await stdin.drain()

    async def _replies(self, ranks: Sequence[int], limit_s: float, what: str) -> list[Reply]:
        """One of each rank. The first that failed is what is told: others fail because of it."""
        loop = asyncio.get_running_loop()
        waiting = {loop.create_task(self._reply(rank)): rank for rank in ranks}
        done, late = await asyncio.wait(waiting, timeout=limit_s, return_when=asyncio.FIRST_EXCEPTION)
        if late and any(task.exception() for task in done):  # others fail because of it: hear them too
            more, late = await asyncio.wait(late, timeout=ECHO_S)
            done |= more
        faults = sorted((waiting[task], task.exception()) for task in done if task.exception())
        if late and not faults:
            silent = ", ".join(str(waiting[task]) for task in late)
            faults = [(-1, EngineFailure(f"{what}: no reply of rank {silent} after {limit_s:g} s"))]
        if not faults:
            return [task.result() for task in waiting]
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        raise self._told(what, [error for _, error in faults if error is not None])

    def _told(self, what: str, errors: Sequence[BaseException]) -> BaseException:
        wrong = next((error for error in errors if isinstance(error, UserError)), None)
        told = "; ".join(map(str, errors))
        return wrong or EngineFailure(
            f"{what}: {told}; resume from the last checkpoint, or start anew where there is none"
        )

    async def _reply(self, rank: int) -> Reply:
        stdout = self.processes[rank].stdout
        assert stdout is not None
        try:
            while isinstance(reply := await self._frame(stdout), Alive):
                pass
        except TimeoutError:
            raise EngineFailure(f"rank {rank} gave no sign of life for {self._silence_s:g} s") from None
        except asyncio.IncompleteReadError:
            status = await self.processes[rank].wait()
            raise EngineFailure(f"rank {rank} ended with status {status}") from None
        if isinstance(reply, Failed):
            raise EngineFailure(reply.reason) if reply.ours else UserError(reply.reason)
        return reply

    async def _frame(self, stdout: asyncio.StreamReader) -> Reply:
        """The next that a rank says. While it loads only the time for all of loading counts."""
        async with asyncio.timeout(self._silence_s if self.weight_bytes else None):
            (length,) = LENGTH.unpack(await stdout.readexactly(LENGTH.size))
            return reply_of(await stdout.readexactly(length))

    @property
    def _silence_s(self) -> float:
        """A rank silent for so long stands still. Others that waited for it, and say so, come first."""
        return self.config.patience_s + ECHO_S
