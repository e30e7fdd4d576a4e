"""Who may call: bearer keys, and how often each may."""

import hashlib
import hmac
import math
import time
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from plait.server.config import ServerConfig
from plait.server.dash.files import SHELL
from plait.server.errors import error_response

OPEN = frozenset({"/health", "/live", "/ready", "/ping", "/metrics", "/version"}) | SHELL
"""What probes and scrapers ask, and the dashboard's files, which hold no data; all else needs a key."""


LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
"""What only the admin key opens, and all that it opens."""


class Keys:
    """The accepted keys, kept as digests."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        self._digests = [_digest(key) for key in keys]

    def find(self, authorization: str | None) -> int | None:
        """Index of the key in an `Authorization` header. Compares with every key, each in constant
        time, so that timing tells nothing. Without any keys everybody is number 0."""
        if not self._digests:
            return 0
        scheme, _, token = (authorization or "").partition(" ")
        given = _digest(token.strip())
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        return matches.index(True) if scheme.lower() == "bearer" and any(matches) else None


class Bucket:
    """Token bucket: `per_minute` requests a minute, as many at once."""

    def __init__(self, per_minute: int, now_s: float) -> None:
        self._per_minute = per_minute
        self._left = float(per_minute)
        self._then_s = now_s

    def wait_s(self, now_s: float) -> float:
        """Takes one request if there is one: 0, else seconds until there will be."""
        earned = (now_s - self._then_s) * self._per_minute / 60
        self._left, self._then_s = min(float(self._per_minute), self._left + earned), now_s
        if self._left < 1:
            return (1 - self._left) * 60 / self._per_minute
        self._left -= 1
        return 0.0


class Guard:
    """ASGI middleware: 401 without a known key, 429 for a key that asks too often.

    Where there are routes for an admin key, no other key opens them, and it opens nothing else.
    """

    def __init__(
        self, app: ASGIApp, config: ServerConfig, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._app = app
        self._keys = Keys(config.api_keys)
        self._admin = None if config.admin_key is None else Keys((config.admin_key,))
        self._clock = clock
        limit = config.rate_limit_per_minute
        count = max(1, len(config.api_keys))
        self._buckets = [Bucket(limit, clock()) for _ in range(count)] if limit else []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("authorization")
        admin = self._admin is not None and scope["path"] in {LOAD, UNLOAD}
        key = (self._admin if self._admin is not None and admin else self._keys).find(given)
        if key is None:
            message = f"send {'the admin key' if admin else 'a valid API key'} as `Authorization: Bearer KEY`"
            challenge = {"www-authenticate": "Bearer"}
            await error_response(401, message, headers=challenge)(scope, receive, send)
            return
        wait_s = self._buckets[key].wait_s(self._clock()) if self._buckets and not admin else 0.0
        if wait_s:
            seconds = math.ceil(wait_s)
            message = f"this key's rate limit is reached; come back in {seconds} s"
            headers = {"retry-after": str(seconds)}
            await error_response(429, message, headers=headers)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
