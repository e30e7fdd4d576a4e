"""`plait dash`: the dashboard alone, of what a run left behind. No engine, no torch."""

import logging
import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from plait import __version__
from plait.server import errors
from plait.server.access import Access
from plait.server.auth import Guard
from plait.server.config import ServerConfig
from plait.server.dash import routes
from plait.server.dash.viewers import Source, Viewers
from plait.server.limits import SizeLimits, limited_protocol

log = logging.getLogger("plait.server.dash")


def create_dash_app(viewers: Viewers, config: ServerConfig) -> FastAPI:
    """An app that shows one run, with the limits and guards of the server."""
    app = FastAPI(title="Plait dashboard", version=__version__, docs_url=None, redoc_url=None)
    errors.install(app)
    app.include_router(routes.router(viewers, config.stall_s))
    app.add_middleware(
        SizeLimits, body_limit_bytes=config.body_limit_bytes, header_limit_bytes=config.header_limit_bytes
    )
    app.add_middleware(Guard, config=config)
    app.add_middleware(Access)
    return app


class DashServer(uvicorn.Server):
    """Says where it listens, once it does."""

    def __init__(self, source: Source, config: ServerConfig, ready: Callable[[str], None]) -> None:
        self._viewers = Viewers(source)
        settings = uvicorn.Config(
            create_dash_app(self._viewers, config),
            host=config.host,
            port=config.port,
            http=limited_protocol(config.header_limit_bytes),
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=1,
        )
        super().__init__(settings)
        self._ready, self._host = ready, config.host
        if config.exposed:
            log.warning("listening on %s without an API key: anybody who can reach it can look", config.host)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            port = self.servers[0].sockets[0].getsockname()[1]
            self._ready(f"http://{self._host}:{port}/dash")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._viewers.close()
        await super().shutdown(sockets)
