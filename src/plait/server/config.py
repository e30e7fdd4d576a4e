"""How the server behaves towards its clients."""

from dataclasses import dataclass
from pathlib import Path

from plait.spec.errors import UserError
from plait.spec.slo import Slo
from plait.text.tool_format import format_named

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
ADMIN_KEY_LENGTH = 16
"""Characters of an admin key, at least: nothing slows those down who guess."""


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Settings of the HTTP side. What concerns scheduling is the engine's."""

    host: str = "127.0.0.1"
    """Address to listen on; anything but loopback without an API key is warned about."""
    port: int = 8000
    """TCP port; 0: any free one."""
    api_keys: tuple[str, ...] = ()
    """Accepted bearer tokens; none: everybody is served."""
    admin_key: str | None = None
    """Bearer token of the routes that load and unload adapters; None: there are no such routes."""
    lora_dirs: tuple[Path, ...] = ()
    """Folders below which those routes find adapters."""
    body_limit_bytes: int = 4 << 20
    """Longest request body; longer ones get 413."""
    header_limit_bytes: int = 32 << 10
    """Longest request line with its headers; longer ones get 431."""
    rate_limit_per_minute: int | None = None
    """Requests a minute for each key; None: no limit."""
    overload_status: int = 503
    """Answer to a full queue: 503, 429 or 529."""
    retry_after_s: int = 1
    """`Retry-After` of answers that ask the client to come back."""
    default_timeout_s: float | None = None
    """Deadline of requests that name none; None: no deadline."""
    drain_s: float = 30.0
    """After SIGTERM, running requests have this long to finish."""
    stall_s: float = 30.0
    """A client that reads nothing for this long is dropped."""
    keep_alive_s: float | None = None
    """SSE comment after this long without a token; None: no comments."""
    max_choices: int = 1024
    """Most sequences of one request (prompts times n)."""
    otlp_endpoint: str | None = None
    """Collector of OpenTelemetry traces (OTLP over HTTP); None: there are none."""
    tool_parser: str = "hermes"
    """How the model writes calls of tools; see `plait.text.tool_format`."""
    dash: bool = True
    """Show the engine at /dash. It costs the loop tens of microseconds for each step of hundreds of rows."""
    slo: Slo | None = None
    """Objectives that the dashboard holds requests against; None: those of elastic instances, if any."""

    def __post_init__(self) -> None:
        format_named(self.tool_parser)
        if any(not key.strip() for key in self.api_keys):
            raise UserError("an API key is empty; leave it out, or set one (PLAIT_API_KEY=...)", "api_keys")
        if self.admin_key is not None and len(self.admin_key) < ADMIN_KEY_LENGTH:
            raise UserError(
                f"the admin key has under {ADMIN_KEY_LENGTH} characters: set a longer one "
                "(PLAIT_ADMIN_KEY=$(openssl rand -hex 32))",
                "admin_key",
            )
        if self.admin_key in self.api_keys:
            raise UserError("the admin key is one of the API keys: set another one", "admin_key")
        if self.lora_dirs and self.admin_key is None:
            raise UserError("--lora-dir is for what an admin key loads: set one, too", "lora_dirs")
        if self.overload_status not in {429, 503, 529}:
            raise UserError("overload_status is 503, 429 or 529", "overload_status")
        if self.rate_limit_per_minute is not None and self.rate_limit_per_minute < 1:
            raise UserError("rate_limit_per_minute is at least 1", "rate_limit_per_minute")

    @property
    def exposed(self) -> bool:
        """Reachable from other machines without a key."""
        return self.host not in LOOPBACK and not self.api_keys
