"""Wishes for the form of a text, as grammars that llguidance reads: `SamplingParams.grammar` is such a text.

JSON may have at most a space, or a line break with indentation, between two of its tokens: a small model that
may write any number of blanks goes on writing them.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llguidance import LLMatcher, grammar_from

from plait.spec.errors import UserError

BLANK = r"[ ]?|\n[ \t]{0,40}"
"""What may stand between two tokens of JSON."""
LARGEST_CHARS = 128 << 10
"""Longest grammar in this form."""


def of_schema(schema: Mapping[str, Any] | bool | str, param: str) -> str:
    """Texts are JSON that a JSON Schema, or its text, describes.

    Raises:
        UserError: it is no schema, nested too deeply, or too long; `param` is what it was given as.
    """

    def make() -> str:
        return LLMatcher.grammar_from_json_schema(
            embedded(json.loads(schema) if isinstance(schema, str) else schema)
        )

    return _sized(make, param)


def embedded(schema: Any) -> str:
    """A schema as it stands behind `%json` in a grammar.

    Raises:
        ValueError: it is neither an object nor a boolean, or brings settings for whoever reads it.
    """
    whole = {} if schema is True else schema
    if not isinstance(whole, dict):
        raise ValueError("a JSON Schema is an object, or true")
    if "x-guidance" in whole:
        raise ValueError("x-guidance is not for callers")
    return json.dumps({**whole, "x-guidance": {"whitespace_pattern": BLANK}}, ensure_ascii=False)


def of_regex(regex: str, param: str) -> str:
    """Texts match a regular expression as a whole. Raises UserError as `of_schema` does."""
    return _sized(lambda: LLMatcher.grammar_from_regex(regex), param)


def of_choices(choices: Sequence[str], param: str) -> str:
    """Texts are one of these. Raises UserError as `of_schema` does."""
    return of_lark("start: " + " | ".join(quoted(choice) for choice in choices), param)


def of_lark(text: str, param: str) -> str:
    """Texts that a grammar describes, written for Lark or in GBNF. Raises UserError as `of_schema` does, and
    where GBNF cannot be read."""
    return _sized(lambda: grammar_from("grammar", text), param)


def quoted(text: str) -> str:
    """A text as a grammar for Lark has it."""
    return json.dumps(text, ensure_ascii=False)


def _sized(make: Callable[[], str], param: str) -> str:
    try:
        grammar = make()
    except (ValueError, RecursionError, TypeError) as error:
        raise UserError(f"{param} cannot be read as what it is to be: {error}", param) from error
    if len(grammar) > LARGEST_CHARS:
        raise UserError(
            f"{param} has {len(grammar)} characters, more than {LARGEST_CHARS}: describe less, or tersely",
            param,
        )
    return grammar
