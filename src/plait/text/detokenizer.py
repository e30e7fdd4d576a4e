"""Token ids to text, a few at a time."""

import codecs
from collections.abc import Iterable

from plait.text.tokenizer import Tokenizer


class Detokenizer:
    """Turns a growing row of tokens into text without ever showing half a character.

    The joined results of `push` and the final `flush` are what `Tokenizer.decode` says of all ids.
    Costs O(1) a token and holds at most three bytes back.
    """

    def __init__(
        self, tokenizer: Tokenizer, skip_special_tokens: bool = True, continues: bool = True
    ) -> None:
        """`continues`: the text follows a prompt, so its first token keeps a leading space."""
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._fresh = not continues
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: Iterable[int]) -> str:
        """Text that these tokens complete."""
        return "".join(self._utf8.decode(self._bytes(id)) for id in ids)

    def flush(self) -> str:
        """The end of the text: an incomplete character becomes U+FFFD."""
        return self._utf8.decode(b"", final=True)

    def _bytes(self, id: int) -> bytes:
        if self._skip and self._tokenizer.is_special(id):
            return b""
        if not self._fresh:
            return self._tokenizer.piece(id)
        piece = self._tokenizer.first_piece(id)
        self._fresh = self._tokenizer.piece(id) == b""
        return piece
