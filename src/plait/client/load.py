"""The load generator: sends a workload to an endpoint on its schedule and records what comes back."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter_ns

import aiohttp

from plait.client.endpoint import Endpoint, EndpointConfig
from plait.client.prompts import Prompts
from plait.workload.result import RequestRecord
from plait.workload.trace import TraceRow

Done = Callable[[RequestRecord], None]


@dataclass(frozen=True, slots=True)
class LoadConfig:
    """How a workload is sent."""

    endpoint: EndpointConfig
    prompts: Prompts = field(default_factory=Prompts)
    concurrency: int | None = None
    """Most requests in flight; a request that is due waits for its turn. With all arrivals at 0 this is a
    closed loop. None: the schedule alone decides."""
    warmup: int = 0
    """Requests sent one after another before the clock starts, and not recorded."""


@dataclass(frozen=True, slots=True)
class Load:
    """A finished run."""

    records: tuple[RequestRecord, ...]
    """In the order of the workload; times count from the start of the schedule."""
    token_ids: bool
    """Prompts were sent as token ids, not as text."""
    late_ns: int
    """The most that a request was sent after it was due: waiting its turn, or for a slow client."""


async def generate(config: LoadConfig, rows: Sequence[TraceRow], done: Done = lambda record: None) -> Load:
    """Run a workload. Failed requests are records too; `done` sees each record as its request ends.

    Raises:
        ServiceError: the endpoint cannot be reached at all.
        UserError: it does not know the model or the key.
    """
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None)  # the endpoint times each request itself
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, read_bufsize=1 << 20) as session:
        run = _Run(config, rows, session)
        await run.prepare()
        return await run.send_all(done)


class _Run:
    """One run of one workload; its clock starts at the first due request."""

    def __init__(self, config: LoadConfig, rows: Sequence[TraceRow], session: aiohttp.ClientSession) -> None:
        self._config = config
        self._rows = rows
        self._start_ns = perf_counter_ns()
        self._endpoint = Endpoint(config.endpoint, session, self._now_ns)
        self._token_ids = False
        self._late_ns = 0

    def _now_ns(self) -> int:
        return perf_counter_ns() - self._start_ns

    async def prepare(self) -> None:
        """Find out what the endpoint takes, and warm it up."""
        self._token_ids = await self._endpoint.takes_ids()
        for index in range(self._config.warmup):
            # Prompts of their own, so that no prefix of the run is cached before it.
            await self._ask(len(self._rows) + index, self._rows[index % len(self._rows)])

    async def send_all(self, done: Done) -> Load:
        """Keep to the schedule, wait for the last answer."""
        turns = asyncio.Semaphore(self._config.concurrency or len(self._rows))
        records: list[RequestRecord | None] = [None] * len(self._rows)

        async def send(index: int, row: TraceRow) -> None:
            try:
                self._late_ns = max(self._late_ns, self._now_ns() - row.arrival_ns)
                record = records[index] = await self._ask(index, row)
            finally:
                turns.release()
            done(record)

        self._start_ns = perf_counter_ns()
        async with asyncio.TaskGroup() as tasks:
            for index, row in enumerate(self._rows):
                await asyncio.sleep(max(row.arrival_ns - self._now_ns(), 0) / 1e9)
                await turns.acquire()
                tasks.create_task(send(index, row))
        return Load(tuple(r for r in records if r is not None), self._token_ids, self._late_ns)

    async def _ask(self, index: int, row: TraceRow) -> RequestRecord:
        prompts = self._config.prompts
        prompt = prompts.ids(index, row) if self._token_ids else prompts.text(index, row)
        return await self._endpoint.ask(index, prompt, row)
