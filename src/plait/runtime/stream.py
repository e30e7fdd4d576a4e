"""`Stream`: one request's answer on its way to the caller.

The driver pushes what was drawn; text comes of it here, and here stop strings are found.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

from plait.runtime.ask import Ask, Piece
from plait.spec.errors import (
    DeadlineExceeded,
    EngineFailure,
    Overloaded,
    PlaitError,
    TooLong,
    UserError,
)
from plait.spec.request import EndReason
from plait.spec.sampling import Draw, TokenLogprob
from plait.text.detokenizer import Detokenizer
from plait.text.stop import StopSearch
from plait.text.tokenizer import Tokenizer

_RAISED: dict[EndReason, tuple[type[PlaitError], str]] = {
    EndReason.DEADLINE: (DeadlineExceeded, "the request's deadline passed before it was done"),
    EndReason.QUEUE_FULL: (Overloaded, "the queue is full; try again later"),
    EndReason.LATE: (Overloaded, "the first token would come too late; try again later"),
    EndReason.DRAINING: (Overloaded, "the server is shutting down; try again elsewhere"),
    EndReason.TOO_LONG: (
        TooLong,
        "prompt and max_tokens together exceed the KV pool of every instance; "
        "ask for fewer tokens or start the server with more --kv-tokens",
    ),
    EndReason.FAILED: (
        EngineFailure,
        "the request was lost with its workers more often than it may be retried",
    ),
}


class Stream:
    """Asynchronous iterator of `Piece`. It ends after the piece that has `finish`; endings that are
    not the model's or the caller's own are raised as PlaitError."""

    def __init__(
        self, id: int, ask: Ask, tokenizer: Tokenizer, abort: Callable[[int], None], adapter: int = 0
    ) -> None:
        """`adapter`: the number of that in `ask`."""
        self.id = id
        self.ask = ask
        self.adapter = adapter
        self.prompt_tokens = len(ask.prompt)
        self.cached_tokens = 0
        """Prompt tokens whose KV was found in the prefix cache; known with the first piece."""
        sampling = ask.sampling
        own = () if sampling.ignore_eos else tokenizer.eos_ids
        self.stop_ids = tuple(dict.fromkeys((*sampling.stop_token_ids, *own)))
        """Every token that ends the row."""
        self.tokens: list[int] = list(ask.prompt)
        """Prompt and everything drawn so far."""
        self.submitted_s = time.perf_counter()
        self.begun_s: float | None = None
        """When its first step was issued."""
        self._detokenizer = Detokenizer(tokenizer, ask.skip_special_tokens)
        self._stops = StopSearch(sampling.stop, sampling.include_stop)
        self._abort = abort
        self._pieces: asyncio.Queue[Piece | PlaitError] = asyncio.Queue()
        self._prompt_seen = 1
        """Prompt positions whose log-probabilities are known; the first token has none."""
        self._stop_reason: int | str | None = None
        self._closed = False
        self._fault = ""
        """Why it cannot go on as it was asked for."""
        self._logprobs: list[TokenLogprob] = []
        """Of an answer that comes in one piece."""

    @property
    def drawn(self) -> int:
        """Tokens drawn so far."""
        return len(self.tokens) - self.prompt_tokens

    def abort(self) -> None:
        """The caller does not want the rest. What was drawn stays readable."""
        if not self._closed:
            self._abort(self.id)

    async def __aiter__(self) -> AsyncIterator[Piece]:
        while True:
            piece = await self._pieces.get()
            if isinstance(piece, PlaitError):
                raise piece
            yield piece
            if piece.finish is not None:
                return

    # ---- the driver's side ---------------------------------------------------------------------

    def push_prompt(self, first: int, logprobs: tuple[TokenLogprob, ...]) -> None:
        """Take log-probabilities of the prompt tokens from position `first` on. A request that is
        computed again brings some of them again."""
        fresh = logprobs[max(0, self._prompt_seen - first) :]
        if fresh:
            self._prompt_seen = first + len(logprobs)
            self._pieces.put_nowait(Piece(prompt_logprobs=fresh))

    def push(self, draw: Draw) -> int | None:
        """Take what a step drew. Returns the number of drawn tokens at which a stop string was
        complete, or None."""
        self.tokens += draw.tokens
        self._fault = draw.fault
        if draw.fault:
            return None
        if self.ask.whole:
            self._logprobs += draw.logprobs
            return None
        if draw.stopped and draw.tokens[-1] in self.ask.sampling.stop_token_ids:
            self._stop_reason = draw.tokens[-1]
        text, found, used = "", None, 0
        hidden = len(draw.tokens) if draw.stopped and not self.ask.sampling.include_stop else 0
        for token in draw.tokens:
            used += 1
            shown = () if used == hidden else (token,)
            safe, found = self._stops.push(self._detokenizer.push(shown))
            text += safe
            if found is not None:
                break
        self._pieces.put_nowait(Piece(text, draw.tokens[:used], draw.logprobs[:used]))
        if found is None:
            return None
        self._stop_reason = found
        return self.drawn - len(draw.tokens) + used

    def end(self, reason: EndReason) -> None:
        """The request is over."""
        if self._closed:
            return
        self._closed = True
        if reason in _RAISED:
            kind, message = _RAISED[reason]
            self._pieces.put_nowait(kind(message))
            return
        if self._fault:
            self._pieces.put_nowait(UserError(f"the form asked for cannot be kept to: {self._fault}"))
            return
        if self.ask.whole:
            drawn = tuple(self.tokens[self.prompt_tokens :])
            self._pieces.put_nowait(Piece(tokens=drawn, logprobs=tuple(self._logprobs), finish=reason))
            return
        text = ""
        if not isinstance(self._stop_reason, str):
            text, found = self._stops.push(self._detokenizer.flush())
            text += self._stops.flush() if found is None else ""
        self._pieces.put_nowait(Piece(text, finish=reason, stop_reason=self._stop_reason))

    def fail(self, error: PlaitError) -> None:
        """The engine cannot go on."""
        if not self._closed:
            self._closed = True
            self._pieces.put_nowait(error)
