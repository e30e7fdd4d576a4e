"""What a caller asked, as the core sees it: lengths and hashes, never token ids."""

from dataclasses import dataclass
from enum import StrEnum


class EndReason(StrEnum):
    """Why a request ended. Every request that arrived ends with exactly one of these."""

    STOP = "stop"  # a stop token, or a stop string found by the runtime
    LENGTH = "length"  # max_tokens reached
    ABORTED = "aborted"  # the caller left
    DEADLINE = "deadline"  # its deadline passed
    QUEUE_FULL = "queue_full"  # refused at arrival
    LATE = "late"  # refused at arrival: its first token would come too late
    TOO_LONG = "too_long"  # refused: fits no instance even alone
    DRAINING = "draining"  # refused: the manager takes no new work
    FAILED = "failed"  # lost with its workers more often than may be retried


REFUSALS = frozenset({EndReason.QUEUE_FULL, EndReason.LATE, EndReason.TOO_LONG, EndReason.DRAINING})


@dataclass(frozen=True, slots=True)
class Request:
    """One sequence to continue.

    A caller's `n` choices are `n` requests that share their prompt's KV through `block_hashes`.
    """

    id: int
    prompt_tokens: int
    """Tokens of the prompt, >= 1."""
    max_tokens: int
    """Most tokens to draw, >= 1."""
    block_hashes: tuple[int, ...] = ()
    """Hash of each full block of the prompt, chained from its start and salted with model,
    adapter, weights version and KV format. Empty: share no KV and look for none."""
    deadline_ns: int | None = None
    """Absolute time after which the request ends as DEADLINE; None: never."""
    model: str = ""
    """Name of the model that continues it."""
    priority: int = 0
    """Lower goes first, where priorities are honoured."""
    adapter: str = ""
    """Name of the adapter that continues it with the model; empty: none. Its hashes are salted with it."""
