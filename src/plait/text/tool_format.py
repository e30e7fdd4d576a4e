"""How models write calls of tools into their text: a table, and the grammars of such texts.

    hermes       <tool_call>\\n{"name": "f", "arguments": {...}}\\n</tool_call>, one after another
    mistral      [TOOL_CALLS] [{"name": "f", "arguments": {...}}, ...]
    llama3_json  {"name": "f", "parameters": {...}}; ... and nothing else

Sources: the chat templates of Qwen2.5 and Hermes 2 Pro, of Mistral 7B v0.3 and of Llama 3.1.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from plait.spec.errors import UserError
from plait.text.grammar import embedded, of_lark, quoted
from plait.text.tokenizer import Tokenizer

NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """One way to write calls."""

    marker: str
    """Begins calls; empty: an answer that begins with a brace is calls as a whole."""
    before: str
    """Between the marker and the first call's object."""
    after: str
    """Behind the last object that belongs to a marker."""
    between: str | None
    """Between two objects of one marker; None: each has a marker of its own."""
    arguments: str
    """Key of the arguments in a call's object."""

    @property
    def glue(self) -> str:
        """Characters that may stand between two objects of one marker, besides blanks."""
        between = self.between or ""
        return "".join((self.before + between + self.after).split()) if self.between is not None else ""

    @property
    def ending(self) -> str:
        """What ends the calls of one marker, where anything but glue does."""
        return self.after.strip() if self.between is None else ""


FORMATS = {
    "hermes": ToolFormat("<tool_call>", "\n", "\n</tool_call>", None, "arguments"),
    "mistral": ToolFormat("[TOOL_CALLS]", " [", "]", ", ", "arguments"),
    "llama3_json": ToolFormat("", "", "", "; ", "parameters"),
}
"""By the name that `--tool-parser` takes."""


def format_named(name: str) -> ToolFormat:
    """Raises UserError for a name that is not in the table."""
    if name not in FORMATS:
        raise UserError(f"there is no tool parser {name!r}: choose {', '.join(FORMATS)}", "tool_parser")
    return FORMATS[name]


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool as the grammar of its calls needs it."""

    name: str
    parameters: Any
    """JSON Schema of its arguments; None: there are none."""


def marker_is_special(form: ToolFormat, tokenizer: Tokenizer) -> bool:
    """The marker is a token that is left out of texts unless told otherwise."""
    id = tokenizer.token_id(form.marker) if form.marker else None
    return id is not None and tokenizer.is_special(id)


def of_calls(form: ToolFormat, tools: Sequence[Tool], tokenizer: Tokenizer, *, several: bool) -> str:
    """Texts that are calls of these tools: one, or where `several`, at least one.

    Raises:
        UserError: the parameters of a tool are no schema that can be enforced.
    """
    marker = _marker(form, tokenizer)
    again = f'("\\n" {marker} body)*' if several and form.between is None else ""
    return of_lark(f"start: {marker} body {again}\n{_body(form, tools, several)}", "tools")


def of_text(form: ToolFormat, tools: Sequence[Tool], tokenizer: Tokenizer, *, several: bool) -> str:
    """Any texts, in which calls are calls of these tools: at most one, or where `several`, any number.

    Raises:
        UserError: see `of_calls`.
    """
    often = "*" if several else "?"
    if not form.marker:
        rules = "start: body | OTHER\nOTHER: /([^{ \\t\\r\\n](.|\\n)*)?/"
    elif marker_is_special(form, tokenizer):
        rules = f"start: REST ({_marker(form, tokenizer)} body REST){often}\nREST: /(.|\\n)*/"
    else:
        # A lazy terminal ends with the first marker, and nothing else may have one.
        marker = re.escape(form.marker)
        rules = f"start: (head body){often} REST\nhead[lazy]: /(.|\\n)*{marker}/\n"
        rules += f"REST: /(.|\\n)*/ & ~/(.|\\n)*{marker}(.|\\n)*/"
    return of_lark(f"{rules}\n{_body(form, tools, several)}", "tools")


def _marker(form: ToolFormat, tokenizer: Tokenizer) -> str:
    if marker_is_special(form, tokenizer):
        return f"<[{tokenizer.token_id(form.marker)}]>"
    return _maybe(form.marker)


def _body(form: ToolFormat, tools: Sequence[Tool], several: bool) -> str:
    """What stands behind a marker."""
    more = f"({quoted(form.between)} call)*" if several and form.between is not None else ""
    return f"body: {_maybe(form.before)} call {more} {_maybe(form.after)}\n{_objects(form, tools)}"


def _maybe(text: str) -> str:
    return quoted(text) if text else ""


def _objects(form: ToolFormat, tools: Sequence[Tool]) -> str:
    rules = ["call: " + " | ".join(f"tool_{i}" for i in range(len(tools)))]
    for i, tool in enumerate(tools):
        head = f'{{"name": {quoted(tool.name)}, "{form.arguments}": '
        schema = NO_ARGUMENTS if tool.parameters is None else tool.parameters
        try:
            body = embedded(schema)
        except (ValueError, RecursionError) as error:
            raise UserError(f"the parameters of {tool.name} cannot be enforced: {error}", "tools") from error
        rules.append(f'tool_{i}: {quoted(head)} arguments_{i} "}}"\narguments_{i}: %json {body}')
    return "\n".join(rules)
