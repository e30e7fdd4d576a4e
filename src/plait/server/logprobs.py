"""Log-probabilities in the three shapes that clients know."""

from collections.abc import Sequence
from typing import Any

from plait.spec.sampling import TokenLogprob
from plait.text.tokenizer import Tokenizer

FLOOR = -9999.0
"""JSON has no -Infinity."""


def name(tokenizer: Tokenizer, token: int, as_ids: bool) -> str:
    """How a token is called: its text, or `token_id:ID`."""
    return f"token_id:{token}" if as_ids else tokenizer.token_text(token)


class CompletionLogprobs:
    """The shape of /v1/completions: parallel lists. The first token of an echoed prompt has none."""

    def __init__(self, tokenizer: Tokenizer, as_ids: bool, offset: int = 0) -> None:
        """`offset`: characters of the text before the first token."""
        self._tokenizer = tokenizer
        self._as_ids = as_ids
        self._offset = offset

    def first(self, token: int) -> dict[str, Any]:
        """The prompt's first token, which nothing stands before."""
        return self._lists([token], [None], [None])

    def of(self, entries: Sequence[TokenLogprob]) -> dict[str, Any]:
        """The lists for some tokens that follow those given before."""
        values = [max(entry.logprob, FLOOR) for entry in entries]
        return self._lists(
            [entry.token for entry in entries], values, [self._top(entry) for entry in entries]
        )

    def _top(self, entry: TokenLogprob) -> dict[str, float]:
        top: dict[str, float] = {}
        for token, logprob in (*entry.top, (entry.token, entry.logprob)):
            top.setdefault(name(self._tokenizer, token, self._as_ids), max(logprob, FLOOR))
        return top

    def _lists(
        self, tokens: list[int], values: Sequence[float | None], tops: Sequence[dict[str, float] | None]
    ) -> dict[str, Any]:
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(self._tokenizer.token_text(token))
        return {
            "tokens": [name(self._tokenizer, token, self._as_ids) for token in tokens],
            "token_logprobs": list(values),
            "top_logprobs": list(tops),
            "text_offset": offsets,
        }


def chat_logprobs(
    tokenizer: Tokenizer, entries: Sequence[TokenLogprob], as_ids: bool
) -> list[dict[str, Any]]:
    """The shape of /v1/chat/completions: one object a token."""

    def one(token: int, logprob: float) -> dict[str, Any]:
        spelled = list(tokenizer.piece(token))
        return {"token": name(tokenizer, token, as_ids), "logprob": max(logprob, FLOOR), "bytes": spelled}

    return [
        one(entry.token, entry.logprob) | {"top_logprobs": [one(*pair) for pair in entry.top]}
        for entry in entries
    ]


def prompt_logprobs(tokenizer: Tokenizer, entries: Sequence[TokenLogprob]) -> list[dict[str, Any] | None]:
    """vLLM's `prompt_logprobs`: for each prompt token from the first on, token id to what is known."""
    found: list[dict[str, Any] | None] = [None]
    for entry in entries:
        pairs: dict[int, tuple[float, int | None]] = {
            token: (logprob, rank) for rank, (token, logprob) in enumerate(entry.top, 1)
        }
        pairs.setdefault(entry.token, (entry.logprob, None))
        found.append(
            {
                str(token): {
                    "logprob": max(logprob, FLOOR),
                    "rank": rank,
                    "decoded_token": tokenizer.token_text(token),
                }
                for token, (logprob, rank) in pairs.items()
            }
        )
    return found
