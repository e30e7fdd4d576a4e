"""POST /v1/load_lora_adapter and /v1/unload_lora_adapter: adapters come and go while others are answered.

There are these routes only where the operator has set an admin key, and only it opens them (`Guard`). What
can be loaded lies below the folders that the operator named: links do not lead out of them, and an answer
does not tell what is outside.
"""

import asyncio
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from plait.model.lora_folder import CONFIG, WEIGHTS
from plait.server.auth import LOAD, UNLOAD
from plait.server.errors import documented
from plait.server.front import Front
from plait.server.json_response import JsonResponse, StrictRoute
from plait.server.strict import Exact
from plait.spec.errors import NotFound, UserError


class UnloadRequest(Exact):
    """vLLM's."""

    lora_name: Annotated[str, Field(min_length=1, max_length=128)]
    lora_int_id: int | None = None
    """vLLM's own number of an adapter: names are enough here, so it has no effect."""


class LoadRequest(UnloadRequest):
    """vLLM's."""

    lora_path: Annotated[str, Field(min_length=1, max_length=4096)]
    """A folder below one of `--lora-dir`, whole or as it is called there."""


def router(front: Front) -> APIRouter:
    """The routes; none without an admin key."""
    routes = APIRouter(route_class=StrictRoute, tags=["admin"])
    if front.config.admin_key is None:
        return routes
    errors = documented(400, 401, 404, 413, 431, 500, 503)

    @routes.post(LOAD, responses=errors)
    async def load(body: LoadRequest) -> Response:
        """Answer with an adapter from now on."""
        front.check_ready()
        folder = await asyncio.to_thread(found, body.lora_path, front.config.lora_dirs)
        await front.engine.load_adapter(body.lora_name, folder)
        return JsonResponse({"status": "loaded", "lora_name": body.lora_name})

    @routes.post(UNLOAD, responses=errors)
    async def unload(body: UnloadRequest) -> Response:
        """Take no more requests for an adapter; those that it has go on to their end."""
        front.engine.adapters.unload(body.lora_name)
        return JsonResponse({"status": "unloaded", "lora_name": body.lora_name})

    return routes


def found(path: str, roots: tuple[Path, ...]) -> Path:
    """The folder that a path names, without links.

    Raises:
        UserError: there are no roots.
        NotFound: it is not below one of them, or has no adapter's files that are.
    """
    if not roots:
        raise UserError("this server loads no adapters while it runs: start it with --lora-dir", "lora_path")
    for root in roots:
        try:
            whole = root.resolve(strict=True)
            folder = (whole / path).resolve(strict=True)
            files = [(folder / name).resolve(strict=True) for name in (CONFIG, WEIGHTS)]
        except (OSError, ValueError, RuntimeError):  # nothing there, no path at all, links in a circle
            continue
        if all(each.is_relative_to(whole) for each in (folder, *files)):
            return folder
    raise NotFound(
        f"lora_path names no folder below --lora-dir that holds {CONFIG} and {WEIGHTS}", "lora_path"
    )
