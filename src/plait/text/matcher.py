"""`Grammars`: which tokens may come next in a text that is to obey a grammar, by llguidance.

A matcher is a function of the tokens drawn so far: whoever has them has it, so rows may be recomputed and
may move without it.
"""

from collections import OrderedDict

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from plait.spec.errors import UserError
from plait.text.tokenizer import Tokenizer

LIMITS = LLParserLimits(
    initial_lexer_fuel=300_000, max_lexer_states=25_000, max_grammar_size=200_000, verbose_errors=False
)
"""Of a grammar: at most about 0.3 s to compile, 0.2 s to find what may come next, and 50 MB. Lexemes are
precomputed, as is usual: without that a hostile pattern never ends."""
KEPT = 16
"""Compiled grammars that are kept."""


class GrammarFault(Exception):
    """No token may come next, or it takes too much to find out; says why."""


class Matcher:
    """One text that grows."""

    def __init__(self, inner: LLMatcher, stop: tuple[int, ...]) -> None:
        """`stop`: tokens that may end it where it is whole."""
        self._inner, self._stop = inner, stop
        self._seen = 0

    def allowed(self, drawn: NDArray[np.int32], vocab: int) -> NDArray[np.bool_]:
        """Which of `vocab` tokens may follow those drawn so far, which begin with what was drawn when this
        was asked last.

        Raises:
            GrammarFault: see there.
        """
        fresh = drawn[self._seen :].tolist()
        self._seen = len(drawn)
        if fresh and not self._inner.consume_tokens(fresh):
            raise GrammarFault(_words(self._inner.get_error()))
        bits = np.frombuffer(self._inner.compute_bitmask(), np.uint8)
        if self._inner.is_error():
            raise GrammarFault(_words(self._inner.get_error()))
        found = np.zeros(max(vocab, len(bits) * 8), np.bool_)
        found[: len(bits) * 8] = np.unpackbits(bits, bitorder="little")
        if self._inner.is_accepting():
            found[[token for token in self._stop if token < len(found)]] = True
        found = found[:vocab]
        if not found.any():
            raise GrammarFault("none of the model's tokens may come next")
        return found


class Grammars:
    """Compiled grammars for one tokenizer; the last ones are kept. For one thread at a time."""

    def __init__(self, tokenizer: Tokenizer, limits: LLParserLimits = LIMITS) -> None:
        """Takes about half a second for 50,000 tokens."""
        self._limits = limits
        self._tokenizer = LLTokenizer(tokenizer.serialised(), eos_token=list(tokenizer.eos_ids) or None)
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()

    def matcher(self, grammar: str, stop: tuple[int, ...]) -> Matcher:
        """For a text that is empty yet. A grammar that is refused has no tokens that come next."""
        return Matcher(self._compile(grammar).deep_copy(), stop)

    def check(self, grammar: str) -> None:
        """Raises UserError where a grammar cannot be used, and says why."""
        inner = self._compile(grammar)
        if not inner.is_error():
            inner.compute_bitmask()
        if inner.is_error():
            self._compiled.pop(grammar)
            words = _words(inner.get_error())
            hint = "write anyOf" if "oneOf" in words else "simplify it, or leave out what is named"
            raise UserError(f"the form asked for cannot be used: {words}; {hint}")

    def _compile(self, grammar: str) -> LLMatcher:
        inner = self._compiled.get(grammar)
        if inner is None:
            inner = LLMatcher(self._tokenizer, grammar, log_level=0, limits=self._limits)
            self._compiled[grammar] = inner
            if len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(grammar)
        return inner


def _words(error: str) -> str:
    """The library's reason on one line, without its marks."""
    lines = error.replace("<non-verbose/>", "").split("\n")
    return " ".join(part for line in lines if (part := line.strip()) and set(part) != {"^"})[:400]
