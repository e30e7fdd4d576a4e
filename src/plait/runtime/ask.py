"""What a front asks of the engine, and what it gets back piece by piece."""

from dataclasses import dataclass

from plait.spec.request import EndReason
from plait.spec.sampling import SamplingParams, TokenLogprob


@dataclass(frozen=True, slots=True)
class Ask:
    """One sequence to continue. A caller's `n` choices are `n` asks."""

    prompt: tuple[int, ...]
    """Token ids, at least one."""
    sampling: SamplingParams
    timeout_ns: int | None = None
    """Ends with DeadlineExceeded this long after it was submitted; None: never."""
    priority: int = 0
    """Lower goes first; other than 0 only where the engine honours priorities."""
    skip_special_tokens: bool = True
    """Leave special tokens out of the text."""
    whole: bool = False
    """The answer comes in one piece, tokens without text, for callers that read no sooner; then stop strings
    are refused."""
    adapter: str = ""
    """Name of the adapter that answers; empty: the model itself."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What a request produced since its last piece.

    Text lags behind tokens where a character or a possible stop string is incomplete; the last
    piece brings the rest.
    """

    text: str = ""
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    """One for each of `tokens`, when asked for."""
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    """For prompt tokens from the second on, when asked for; they come before the first token."""
    finish: EndReason | None = None
    """Set on the last piece: STOP, LENGTH or ABORTED. All other endings are raised."""
    stop_reason: int | str | None = None
    """The stop token id or stop string that ended it; None for the model's own end token."""


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What clients may know of the served model."""

    name: str
    root: str
    """Folder of its weights and tokenizer."""
    max_model_len: int
    """Longest prompt with output, in tokens."""
    created: int
    """Unix seconds."""
