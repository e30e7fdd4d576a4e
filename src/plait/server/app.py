"""The application: routes in the middle, limits and guards around them."""

from typing import TYPE_CHECKING

from fastapi import FastAPI

from plait import __version__
from plait.server import adapters, admin, chat, completions, errors, tokens
from plait.server.access import Access
from plait.server.auth import Guard
from plait.server.config import ServerConfig
from plait.server.dash import routes
from plait.server.front import Front
from plait.server.limits import SizeLimits

if TYPE_CHECKING:
    from plait.runtime.engine import Engine


def create_app(engine: "Engine", config: ServerConfig) -> FastAPI:
    """An app that answers from this engine. Its `state.front` drains it (see `lifespan`)."""
    front = Front(engine, config)
    app = FastAPI(
        title="Plait", version=__version__, summary="OpenAI-compatible text generation", redoc_url=None
    )
    app.state.front = front
    errors.install(app)
    for part in (completions, chat, tokens, admin, adapters):
        app.include_router(part.router(front))
    if front.viewers is not None:
        app.include_router(routes.router(front.viewers, config.stall_s))
    # The last one added is the outermost.
    app.add_middleware(
        SizeLimits, body_limit_bytes=config.body_limit_bytes, header_limit_bytes=config.header_limit_bytes
    )
    app.add_middleware(Guard, config=config)
    app.add_middleware(Access)
    return app
