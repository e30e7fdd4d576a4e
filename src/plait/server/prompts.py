"""Texts and conversations to token ids that fit the model, off the event loop when they are long."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from plait.spec.errors import TooLong, UserError
from plait.text.tokenizer import Tokenizer

T = TypeVar("T")
INLINE_CHARS = 2048
"""Shorter texts are tokenised in place: cheaper than a hop to a thread."""


async def work(chars: int, call: Callable[[], T]) -> T:
    """The result of a call that works on so many characters."""
    return call() if chars <= INLINE_CHARS else await asyncio.to_thread(call)


async def encode(tokenizer: Tokenizer, texts: Sequence[str], add_special_tokens: bool) -> list[list[int]]:
    """Token ids of each text."""
    chars = sum(len(text) for text in texts)
    return await work(chars, lambda: [tokenizer.encode(text, add_special_tokens) for text in texts])


async def render(tokenizer: Tokenizer, messages: Sequence[dict[str, Any]], **options: Any) -> str:
    """The prompt text of a conversation."""
    chars = sum(len(message["content"]) for message in messages)
    return await work(chars, lambda: tokenizer.render_chat(messages, **options))


def check_ids(ids: Sequence[int], vocab_size: int) -> None:
    """Raises UserError for an empty prompt, or a token id outside the vocabulary."""
    if not ids:
        raise UserError("the prompt has no tokens; send at least one", "prompt")
    if max(ids) >= vocab_size:
        raise UserError(f"the prompt has {max(ids)}, but the largest token id is {vocab_size - 1}", "prompt")


def fit(
    ids: list[int], keep: int | None, max_tokens: int | None, default: int | None, max_model_len: int
) -> tuple[list[int], int]:
    """(the prompt, cut to its last `keep` tokens, and how many tokens may be drawn).

    `keep` -1 keeps as many as fit; `default` draws are asked for where `max_tokens` is None, and all
    that fit where both are.

    Raises:
        TooLong: the prompt, or the prompt with what is to be drawn, exceeds the context.
    """
    if keep is not None:
        keep = max_model_len - (max_tokens or default or 1) if keep == -1 else keep
        ids = ids[-keep:] if keep > 0 else ids
    room = max_model_len - len(ids)
    if room < 1:
        raise TooLong(
            f"the prompt has {len(ids)} tokens and the model's context {max_model_len}, of which at least "
            "one is drawn; shorten the prompt or set truncate_prompt_tokens",
            "prompt",
        )
    if max_tokens is not None and max_tokens > room:
        raise TooLong(
            f"the prompt has {len(ids)} tokens and max_tokens is {max_tokens}, together more than the "
            f"model's context of {max_model_len}; ask for at most {room}",
            "max_tokens",
        )
    return ids, max_tokens if max_tokens is not None else min(room, default or room)
