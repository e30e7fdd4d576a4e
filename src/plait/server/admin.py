"""What probes, scrapers and client libraries ask before they ask for tokens."""

from typing import Any

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from plait import __version__
from plait.server.errors import Refusal, documented
from plait.server.front import Front
from plait.server.json_response import JsonResponse, StrictRoute


def router(front: Front) -> APIRouter:
    """The routes."""
    routes = APIRouter(route_class=StrictRoute)
    _add_probes(routes, front)
    _add_models(routes, front)

    @routes.get("/version")
    async def version() -> Response:
        """The server's version."""
        return JsonResponse({"version": __version__})

    @routes.get("/load", responses=documented(401, 429, 431))
    async def load() -> Response:
        """Requests for tokens that are being answered."""
        return JsonResponse({"server_load": front.in_flight})

    @routes.get("/metrics", response_class=Response, responses=documented(413, 431, also="text/plain"))
    async def metrics() -> Response:
        """Prometheus metrics."""
        return Response(front.metrics.exposition(), headers={"content-type": CONTENT_TYPE_LATEST})

    return routes


def _add_probes(routes: APIRouter, front: Front) -> None:
    @routes.get("/health", responses=documented(503))
    @routes.get("/ping", responses=documented(503))
    @routes.post("/ping", responses=documented(503))
    async def health() -> Response:
        """200 while the engine lives, also while it drains."""
        state = front.engine.health()
        if state.dead:
            raise Refusal(503, f"the engine is dead: {state.reason}")
        return JsonResponse({"status": "ok"})

    @routes.get("/live")
    async def live() -> Response:
        """200 while the process can answer."""
        return JsonResponse({"status": "live"})

    @routes.get("/ready", responses=documented(503))
    async def ready() -> Response:
        """200 while new requests are taken."""
        front.check_ready()
        return JsonResponse({"status": "ready"})


def _add_models(routes: APIRouter, front: Front) -> None:
    @routes.get("/v1/models", tags=["models"], responses=documented(401, 429, 431))
    async def models() -> Response:
        """The served model, and the adapters that answer with it."""
        names = ["", *front.engine.adapters.cards]
        return JsonResponse({"object": "list", "data": [_card(front, name) for name in names]})

    @routes.get("/v1/models/{id:path}", tags=["models"], responses=documented(401, 404, 429, 431))
    async def model(id: str) -> Response:
        """The served model, or an adapter, by name."""
        return JsonResponse(_card(front, front.adapter_of(id)))


def _card(front: Front, adapter: str) -> dict[str, Any]:
    """Of an adapter, or without a name of the model itself."""
    card = front.engine.card
    said = front.engine.adapters.cards[adapter] if adapter else card
    return {
        "id": said.name,
        "object": "model",
        "created": said.created,
        "owned_by": "plait",
        "root": said.root,
        "parent": card.name if adapter else None,
        "max_model_len": card.max_model_len,
        "permission": [],
    }
