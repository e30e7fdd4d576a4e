"""One choice of an answer as its pieces come, and the usage of all of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from plait.runtime.ask import Piece
from plait.runtime.stream import Stream
from plait.spec.request import EndReason
from plait.spec.sampling import TokenLogprob

FINISH = {EndReason.STOP: "stop", EndReason.LENGTH: "length", EndReason.ABORTED: "abort"}


@dataclass(slots=True)
class Choice:
    """What one sequence has produced."""

    text: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: str | None = None
    stop_reason: int | str | None = None

    def add(self, piece: Piece) -> None:
        """Take in the next piece."""
        self.text.append(piece.text)
        self.tokens.extend(piece.tokens)
        self.logprobs.extend(piece.logprobs)
        self.prompt_logprobs.extend(piece.prompt_logprobs)
        if piece.finish is not None:
            self.finish = FINISH[piece.finish]
            self.stop_reason = piece.stop_reason


def usage(streams: Sequence[Stream], n: int, drawn: int) -> dict[str, Any]:
    """Tokens used by all choices; the `n` choices of a prompt share it, so it counts once."""
    prompt = sum(stream.prompt_tokens for stream in streams[::n])
    cached = sum(stream.cached_tokens for stream in streams[::n])
    return {
        "prompt_tokens": prompt,
        "completion_tokens": drawn,
        "total_tokens": prompt + drawn,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
