"""Faults of a whole deployment, seen over HTTP: `plait serve` with prefill, decode and an instance for both.

Slow and leaving callers, workers and the server itself killed or stopped, a full disk.
"""

import asyncio
import os
import random
import resource
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from enum import StrEnum
from pathlib import Path

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from chaos.callers import Callers, client
from chaos.served import Served, alive, gone
from chaos.verdict import BOUND_S, Verdict
from plait.runtime.ask import Ask
from plait.spec.errors import UserError
from plait.workload.journal import read_journal

OPTIONS = (
    *(
        "--prefill",
        "1",
        "--decode",
        "1",
        "--instances",
        "3",
        "--exact",
        "--kv-tokens",
        "2048",
        "--step-tokens",
        "48",
    ),
    *("--max-queue", "24", "--max-rows", "8", "--no-dash"),
)
CALLERS, STORM = 12, 40
PAUSE_S = 0.7
"""Mean time between two faults."""
LEASE_S = BOUND_S
"""Workers whose server is gone are gone after so long: one that serves at once, one that just starts when
it has imported what it needs and looks at its stdin."""
SHARED = Path("/dev/shm")


class Harm(StrEnum):
    """What is done."""

    SLOW_READER = "a caller reads slowly"
    STORM = "callers leave, all at once"
    HALF = "half a request"
    KILL_WORKER = "worker: kill -9"
    FREEZE_WORKER = "worker: stopped for a while"
    FREEZE_SERVER = "server: stopped for a while"
    DISK = "the journal's disk is full"
    RESTART = "server: kill -9, and started again"


EACH = (Harm.SLOW_READER, Harm.STORM, Harm.HALF, Harm.KILL_WORKER, Harm.FREEZE_WORKER, Harm.FREEZE_SERVER)
RARE = 12
"""A full disk and a restart after each so many other faults."""


class Front:
    """A server, its callers and what is done to them."""

    def __init__(
        self,
        client: aiohttp.ClientSession,
        folder: Path,
        root: Path,
        work: tuple[list[Ask], list[list[int]]],
        seed: int,
    ) -> None:
        self._folder, self._root, self._rng = folder, root, random.Random(seed)
        self._starts = 0
        self._before = _shared()
        self.server = self._start(0)
        self.callers = Callers(client, self.server.url, *work)
        self.found = self.callers.found
        self._beside: list[asyncio.Task[None]] = []
        self._loop = asyncio.get_running_loop()

    @property
    def journal(self) -> Path:
        """Of the present server."""
        return self._root / f"journal-{self._starts}.jsonl"

    def _start(self, port: int) -> Served:
        self._starts += 1
        options = (*OPTIONS, "--journal", str(self.journal))
        return Served(self._folder, options, self._root / "log", port)

    async def run(self, faults: int) -> None:
        """So many faults, in an order drawn by chance, while callers go on."""
        tasks = [asyncio.ensure_future(self.callers.go_on(self._rng.random())) for _ in range(CALLERS)]
        for harm in self._course(faults):
            await asyncio.sleep(self._rng.expovariate(1 / PAUSE_S))
            await self._harm(harm)
            self.found.faults[f"over HTTP: {harm}"] += 1
        self.callers.enough = True
        await asyncio.gather(*tasks, *self._beside)
        await quiet(self.server.url, self.found)

    def _course(self, faults: int) -> list[Harm]:
        """All kinds in turn; the rare ones late in each round."""
        course: list[Harm] = []
        while len(course) < faults:
            usual = [EACH[at % len(EACH)] for at in range(RARE - 2)]
            course += [*self._rng.sample(usual, len(usual)), Harm.DISK, Harm.RESTART]
        return course[-faults:]

    async def _harm(self, harm: Harm) -> None:
        rng = self._rng
        at = rng.randrange(len(self.callers.asks))
        if harm is Harm.SLOW_READER:
            reading = self.callers.read_slowly(at, rng.uniform(0.5, 2.0))
            self._beside.append(asyncio.ensure_future(reading))
        elif harm is Harm.STORM:
            await self.callers.storm(STORM, rng)
        elif harm is Harm.HALF:
            await self.callers.send_half(at)
        elif harm is Harm.KILL_WORKER:
            os.kill(await self._worker(), signal.SIGKILL)
        elif harm is Harm.FREEZE_WORKER:
            self._freeze(await self._worker(), rng.uniform(0.1, 1.0))
        elif harm is Harm.FREEZE_SERVER:
            self._freeze(self.server.pid, rng.uniform(0.1, 1.0))
        elif harm is Harm.DISK:
            await self._fill_disk()
        else:
            await self._restart()

    async def _worker(self) -> int:
        """One that is there; a moment after one was killed there may be none."""
        workers: list[int] = []
        while not workers:  # until the fleet has started it again
            await asyncio.sleep(0.05)
            workers = [pid for pid in self.server.processes()[1:] if alive(pid)]
        return self._rng.choice(workers)

    def _freeze(self, pid: int, seconds: float) -> None:
        os.kill(pid, signal.SIGSTOP)
        self._loop.call_later(seconds, _thaw, pid)

    # ---- a full disk -----------------------------------------------------------------------------

    async def _fill_disk(self) -> None:
        """No file of the server may grow any more: its journal ends there, whole but for its last line, and
        requests go on. (Connections and shared memory are none.)"""
        journal, hard = self.journal, resource.prlimit(self.server.pid, resource.RLIMIT_FSIZE)[1]
        size = journal.stat().st_size
        resource.prlimit(self.server.pid, resource.RLIMIT_FSIZE, (size, hard))
        past_s = time.monotonic() + BOUND_S
        while f"{journal} ends here" not in self.server.words:
            if time.monotonic() > past_s:
                self.found.wrong.append("the journal does not end, though its disk is full")
                return
            await asyncio.sleep(0.1)
        try:
            await asyncio.to_thread(read_journal, journal)
        except UserError as error:
            self.found.wrong.append(f"a journal whose disk was full cannot be read: {error}")

    # ---- a server that dies ----------------------------------------------------------------------

    async def _restart(self) -> None:
        """Kill the server in the midst of its work: its workers leave, nothing is left of them, its port is
        free, and another one serves there."""
        processes, port, callers = self.server.processes(), self.server.port, self.callers
        callers.up.clear()
        await asyncio.to_thread(self.server.kill)
        if left := await asyncio.to_thread(gone, processes, LEASE_S):
            self.found.wrong.append(f"{len(left)} processes outlive their server")
        if names := _shared() - self._before:
            self.found.wrong.append(f"shared memory is left behind: {sorted(names)}")
        if port in _listening():
            self.found.wrong.append(f"somebody listens at the port {port} of a dead server")
        self.server = await asyncio.to_thread(self._start, port)
        callers.up.set()


async def quiet(url: str, found: Verdict) -> None:
    """Nothing runs, waits or holds slots once nobody asks."""
    past_s, held = time.monotonic() + BOUND_S, await busy(url)
    while any(held) and time.monotonic() < past_s:
        await asyncio.sleep(0.1)
        held = await busy(url)
    found.leaked += int(held[0])
    if any(held[1:]):
        found.wrong.append(f"{held[1]:g} requests run and {held[2]:g} wait, though nobody asks")


async def busy(url: str) -> tuple[float, ...]:
    """Slots in use, requests that run, requests that wait."""
    names = ("plait:instance_kv_used_slots", "vllm:num_requests_running", "vllm:num_requests_waiting")
    async with aiohttp.ClientSession(url) as client, client.get("/metrics") as reply:
        text = await reply.text()
    found = {family.name: family.samples for family in text_string_to_metric_families(text)}
    return tuple(sum(sample.value for sample in found[name]) for name in names)


async def front(
    folder: Path, root: Path, work: tuple[list[Ask], list[list[int]]], faults: int, seed: int
) -> Verdict:
    """A deployment with so many faults. `work`: asks, and the tokens that they must get."""
    async with client() as opened:
        made = Front(opened, folder, root, work, seed)
        try:
            await made.run(faults)
        finally:
            await asyncio.to_thread(made.server.stop)
    made.found.wrong = [f"over HTTP, seed {seed}: {each}" for each in made.found.wrong]
    return made.found


def _thaw(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def _shared() -> set[str]:
    """Names of memory that is shared, of ours."""
    return {each.name for each in SHARED.glob("plait-*")} if SHARED.is_dir() else set()


def _listening() -> Sequence[int]:
    """TCP ports of this host at which somebody listens."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A"]
