"""A real server on a real socket, on the test's own event loop, in front of an engine that counts."""

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from plait.runtime.engine import Engine
from plait.server.config import ServerConfig
from plait.server.front import Front
from plait.server.lifespan import Server, make_server
from tests.server.counting import counting_engine

PATIENCE_S = 60


@dataclass
class Site:
    """A running server and a client of it."""

    server: Server
    engine: Engine
    client: aiohttp.ClientSession
    url: str

    @property
    def front(self) -> Front:
        return self.server._front

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    async def post(self, path: str, body: Any = None, **options: Any) -> tuple[int, dict]:
        async with self.client.post(self.url + path, json=body, **options) as reply:
            return reply.status, await reply.json()

    async def get(self, path: str, **options: Any) -> tuple[int, str]:
        async with self.client.get(self.url + path, **options) as reply:
            return reply.status, await reply.text()

    async def load(self, wanted: int) -> None:
        """Returns when the server answers so many requests for tokens."""
        async with asyncio.timeout(PATIENCE_S):
            while json.loads((await self.get("/load"))[1])["server_load"] != wanted:
                pass

    async def idle(self) -> None:
        """Returns when nothing is answered and no KV is held."""
        await self.load(0)
        async with asyncio.timeout(PATIENCE_S):
            while self.engine.stats().kv_used_slots:
                await self.get("/metrics")


@asynccontextmanager
async def serving(engine: Engine, config: ServerConfig) -> AsyncIterator[Site]:
    """Start the engine, serve it on a free port, and close both."""
    listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    server = make_server(engine, dataclasses.replace(config, port=0), listening.set_result)
    await engine.start()
    running = asyncio.ensure_future(server._serve())
    try:
        async with aiohttp.ClientSession() as client:
            yield Site(server, engine, client, await listening)
    finally:
        server.should_exit = True
        await running
        await engine.close()


Open = Callable[..., Awaitable[Site]]


@pytest.fixture
async def open_site(tmp_path: Path) -> AsyncIterator[Open]:
    """Opens sites; `engine` are options of `counting_engine`, the others are of ServerConfig."""
    async with AsyncExitStack() as stack:

        async def open_one(engine: dict | None = None, **settings: Any) -> Site:
            counting = counting_engine(tmp_path, **(engine or {}))
            return await stack.enter_async_context(serving(counting, ServerConfig(**settings)))

        yield open_one


@pytest.fixture
async def site(open_site: Open) -> Site:
    return await open_site()
