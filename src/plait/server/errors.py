"""Every answer that is not a success has the same JSON body: {"error": {message, type, param, code}}."""

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from plait.server.json_response import JsonResponse
from plait.spec.errors import EngineFailure, PlaitError, UserError

log = logging.getLogger("plait.server")

TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    413: "RequestTooLargeError",
    429: "RateLimitError",
    431: "RequestHeaderFieldsTooLargeError",
    499: "ClientClosedRequest",
    500: "InternalServerError",
    503: "ServiceUnavailableError",
    504: "DeadlineExceededError",
    529: "ServiceUnavailableError",
}
OURS = "internal error; the server's log has the details"


class ErrorDetail(BaseModel):
    """What went wrong, in words, and which field was at fault."""

    message: str
    type: str
    param: str | None
    code: int


class ErrorBody(BaseModel):
    """Body of every answer that is not a success."""

    error: ErrorDetail


class Refusal(PlaitError):
    """The server itself refuses: a status, words, and headers that say when to come back."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})


class ClientGone(PlaitError):
    """The client closed the connection before its answer was ready."""

    status = 499


def documented(*statuses: int, also: str | None = None) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route, for openapi.json; `also`: media type of a success that may be no JSON."""
    found: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorBody, "description": "any other refusal"}}
    if also is not None:
        found[200] = {"content": {also: {}}, "description": "the answer"}
    for status in statuses:
        found[status] = {"model": ErrorBody, "description": TYPES[status]}
    return found


def error_body(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """The JSON body of an error."""
    kind = TYPES.get(status, "BadRequestError" if status < 500 else "InternalServerError")
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


def body_of(error: Exception, status: int | None = None) -> dict[str, Any]:
    """What clients may know of an exception: only errors that were raised on purpose speak."""
    if not isinstance(error, PlaitError):
        return error_body(500, OURS)
    param = error.param if isinstance(error, UserError) else None
    return error_body(status or error.status, str(error), param)


def error_response(
    status: int, message: str, param: str | None = None, headers: Mapping[str, str] | None = None
) -> JsonResponse:
    """An error as a whole answer."""
    return JsonResponse(error_body(status, message, param), status, headers)


def install(app: FastAPI) -> None:
    """Answer every exception in the one form."""

    @app.exception_handler(PlaitError)
    async def plait_error(request: Request, error: PlaitError) -> JsonResponse:
        if isinstance(error, EngineFailure):
            log.error("engine failure: %s", error)
        headers = error.headers if isinstance(error, Refusal) else None
        return JsonResponse(body_of(error), error.status, headers)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JsonResponse:
        return error_response(error.status_code, _words(request, error), headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JsonResponse:
        return error_response(400, *_first_problem(error.errors()))


def _words(request: Request, error: HTTPException) -> str:
    if error.status_code == 404:
        return "there is no such route; /openapi.json lists all routes"
    if error.status_code == 405:
        return f"this route does not take {request.method[:20]}"
    return str(error.detail)


def _first_problem(problems: Any) -> tuple[str, str | None]:
    """(message, field) of the first problem; never shows what the client sent."""
    problem = problems[0]
    place = [
        str(part)[:40] for part in problem["loc"][1:8] if part not in {"text", "texts", "ids", "id_lists"}
    ]
    if problem["type"] in {"model_attributes_type", "missing"} and not place:
        return "send a JSON object with Content-Type: application/json", None
    field = ".".join(place)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{field}: {problem['msg'][:300]}{more}", field or None
