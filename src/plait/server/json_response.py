"""JSON in and out: strict where it comes in, fast where it goes out."""

from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import msgspec
from fastapi import Request
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.exceptions import HTTPException
from starlette.responses import Response

encode = msgspec.json.encode


class JsonResponse(Response):
    """A JSON body from plain dicts and lists."""

    media_type = "application/json"

    def __init__(
        self, content: Any, status_code: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(encode(content), status_code, headers)


class StrictRequest(Request):
    """Its body is JSON as RFC 8259 has it: UTF-8, no NaN or Infinity, no half surrogates, not too deep."""

    async def json(self) -> Any:
        try:
            return from_json(await self.body(), allow_inf_nan=False)
        except ValueError as error:
            raise HTTPException(400, f"the body is not JSON: {error}") from error


class StrictRoute(APIRoute):
    """A route whose handler gets a `StrictRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handle(StrictRequest(request.scope, request.receive))

        return strict
