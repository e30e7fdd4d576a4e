"""The dashboard's routes: its files, which hold no data, and the stream, which is guarded as others are."""

from importlib.resources import files

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from plait.server.dash.files import PAGE, POLICY, TYPES, VENDOR
from plait.server.dash.stream import SheetStream
from plait.server.dash.viewers import Viewers
from plait.server.errors import documented


def router(viewers: Viewers, stall_s: float) -> APIRouter:
    """The routes."""
    routes = APIRouter()
    _add(routes, "/dash", "page/index.html")
    for name in PAGE:
        _add(routes, f"/dash/{name}", f"page/{name}")
    for name in VENDOR:
        _add(routes, f"/dash/vendor/{name}", f"vendor/{name}")

    @routes.get("/dash/events", responses=documented(400, 401, 429, 431, 503, also="text/event-stream"))
    async def events(
        request: Request, at: int | None = Query(None, ge=0, description="Microseconds; recorded runs only.")
    ) -> Response:
        """What the dashboard shows, as server-sent events named `sheet`; with `at`, one of them as JSON."""
        if at is not None:
            return Response(viewers.source.past(at), media_type="application/json")
        return SheetStream(viewers, request, stall_s)

    return routes


def _add(routes: APIRouter, path: str, file: str) -> None:
    """A file, read once."""
    content = files("plait.server.dash").joinpath(file).read_bytes()
    headers = {
        "content-type": f"{TYPES[file[file.rindex('.') :]]}; charset=utf-8",
        "content-security-policy": POLICY,
        "cache-control": "no-cache",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }

    async def answer() -> Response:
        return Response(content, headers=headers)

    routes.add_api_route(path, answer, include_in_schema=False)
