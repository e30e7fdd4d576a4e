"""Prompts of a wanted length: random token ids where an endpoint takes them, else random words."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from plait.workload.trace import TraceRow

FIRST_ID = 100
"""Below it tokenizers keep special tokens and single bytes."""
WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school")
"""Frequent words, which are one token each in most vocabularies."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """Makes the prompt of each row of a workload; the same row always gets the same prompt.

    Prompts of rows that share block hashes share those tokens, so a trace's prefixes can be reused.
    """

    seed: int = 0
    vocab: int = 1000
    """Ids are drawn from `FIRST_ID` up to this."""

    def ids(self, index: int, row: TraceRow) -> list[int]:
        """`row.prompt_tokens` token ids."""
        return [int(FIRST_ID + value % (self.vocab - FIRST_ID)) for value in self._draw(index, row)]

    def text(self, index: int, row: TraceRow) -> str:
        """`row.prompt_tokens` words: about as many tokens; what is reported is the endpoint's own count."""
        return " ".join(WORDS[value % len(WORDS)] for value in self._draw(index, row))

    def _draw(self, index: int, row: TraceRow) -> Sequence[int]:
        drawn: list[int] = []
        for block in row.block_hashes:
            drawn += (
                np.random.default_rng((self.seed, 1, block)).integers(1 << 31, size=row.block_tokens).tolist()
            )
        lacking = max(row.prompt_tokens - len(drawn), 0)
        drawn += np.random.default_rng((self.seed, 0, index)).integers(1 << 31, size=lacking).tolist()
        return drawn[: row.prompt_tokens]
