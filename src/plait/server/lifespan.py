"""Running the app until a signal, and leaving in order."""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from plait.server.app import create_app
from plait.server.config import ServerConfig
from plait.server.front import Front
from plait.server.limits import limited_protocol
from plait.spec.errors import ServiceError

if TYPE_CHECKING:
    from plait.runtime.engine import Engine

log = logging.getLogger("plait.server")
LAST_WORDS_S = 1
"""After the drain, aborted requests have this long to say so."""


class Server(uvicorn.Server):
    """Drains on the first signal: /ready and new requests get 503 while running requests finish, for
    at most `drain_s`; then it closes. A second signal closes at once."""

    def __init__(
        self, front: Front, config: uvicorn.Config, on_ready: Callable[[str], None] | None = None
    ) -> None:
        """`on_ready` is told the URL once the server listens."""
        super().__init__(config)
        self._front = front
        self._on_ready = on_ready
        self._drain: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by the signal, between any two bytecodes: leaves the work to the loop."""
        if self._front.draining or self._loop is None:
            self.should_exit = True
            return
        self._front.draining = True
        self._loop.call_soon_threadsafe(self.drain)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started and self._on_ready is not None:
            self._on_ready(self.url)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._front.viewers is not None:
            self._front.viewers.close()  # their streams would hold the shutdown up
        await super().shutdown(sockets)
        await self._front.close()

    @property
    def url(self) -> str:
        """Where a started server listens."""
        port = self.servers[0].sockets[0].getsockname()[1]
        return f"http://{self._front.config.host}:{port}"

    def drain(self) -> None:
        """Take nothing new, finish what runs, then stop."""
        self._front.draining = True
        if self._drain is None:
            self._drain = asyncio.get_running_loop().create_task(self._finish())

    async def _finish(self) -> None:
        log.info("draining: %d requests run, at most %g s", self._front.in_flight, self._front.config.drain_s)
        try:
            async with asyncio.timeout(self._front.config.drain_s):
                await self._front.idle.wait()
        except TimeoutError:
            log.warning("%d requests did not finish in time and are aborted", self._front.in_flight)
        self.should_exit = True


def make_server(
    engine: "Engine", config: ServerConfig, on_ready: Callable[[str], None] | None = None
) -> Server:
    """A server whose `serve()` answers until it is told to stop."""
    if config.exposed:
        log.warning("listening on %s without an API key: anybody who can reach it can use it", config.host)
    app = create_app(engine, config)
    settings = uvicorn.Config(
        app,
        host=config.host,
        port=config.port,
        http=limited_protocol(config.header_limit_bytes),
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=LAST_WORDS_S,
    )
    return Server(app.state.front, settings, on_ready)


async def serve(
    engine: "Engine", config: ServerConfig, on_ready: Callable[[str], None] | None = None
) -> None:
    """Answer HTTP until SIGTERM or SIGINT, then drain. `on_ready` is told the URL once it listens."""
    await make_server(engine, config, on_ready).serve()


async def visited(engine: "Engine", config: ServerConfig, visit: Callable[[str], Awaitable[None]]) -> None:
    """Answer HTTP while `visit` goes on, which is told the URL, then drain; a signal drains sooner.

    Raises:
        ServiceError: the server ended before it listened.
    """
    listens = asyncio.get_running_loop().create_future()
    server = make_server(engine, config, listens.set_result)
    serving = asyncio.create_task(server.serve())
    await asyncio.wait((listens, serving), return_when=asyncio.FIRST_COMPLETED)
    try:
        if not listens.done():
            raise ServiceError(f"the server at {config.host}:{config.port} ended before it listened")
        await visit(listens.result())
    finally:
        server.drain()
        await serving
