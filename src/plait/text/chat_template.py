"""Chat messages to a prompt, by the Jinja template that a model brings, rendered as transformers does."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import meta
from jinja2.ext import Extension
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from plait.spec.errors import UserError

Message = Mapping[str, Any]
_BAD_MESSAGES = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)


class ChatTemplate:
    """A compiled template. Templates come from model folders, so they run in Jinja's sandbox."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """`special_tokens`: name (`bos_token`, ...) to text, visible to the template.

        Raises:
            UserError: the template has a syntax error.
        """
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        self._special_tokens = dict(special_tokens)
        try:
            self._template = environment.from_string(source)
            self.takes_tools = "tools" in meta.find_undeclared_variables(environment.parse(source))
            """It shows tools to the model."""
        except (jinja2.TemplateError, SyntaxError, ValueError, RecursionError) as error:
            raise UserError(f"the chat template cannot be compiled: {error}") from error

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt for `messages`; `extra` are variables for the template.

        Raises:
            UserError: the template refuses the messages, or shows no tools, or the final one cannot be
                continued.
        """
        if tools and not self.takes_tools:
            raise UserError(
                "the model's chat template shows no tools: start the server with one that does "
                "(--chat-template FILE), or leave out tools",
                "tools",
            )
        if continue_final_message and add_generation_prompt:
            raise UserError(
                "continue_final_message continues the last message, add_generation_prompt starts a new one; "
                "set only one of them",
                "continue_final_message",
            )
        variables = {**self._special_tokens, **(extra or {})}
        variables |= {"messages": messages, "tools": tools or None, "documents": None}
        variables["add_generation_prompt"] = add_generation_prompt
        try:
            text = self._template.render(variables)
        except (jinja2.TemplateError, *_BAD_MESSAGES) as error:
            raise UserError(f"the model's chat template refused the messages: {error}", "messages") from error
        return _cut_after(text, messages[-1].get("content")) if continue_final_message else text


def _cut_after(text: str, final: str | None) -> str:
    """Drop what the template put behind the final message, so that the model goes on writing it."""
    stripped = (final or "").strip()
    at = text.rfind(stripped) if stripped else -1
    if at < 0:
        raise UserError(
            "the chat template does not show the final message's text, so it cannot be continued",
            "continue_final_message",
        )
    whole = (final or "").lstrip()
    return text[: at + len(whole if text.startswith(whole, at) else stripped)]


class _Generation(Extension):
    """`{% generation %}` marks what the assistant said, for training; the text is left as it is."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(value: Any, **options: Any) -> str:
    """JSON without the HTML escapes of Jinja's own filter, as templates expect."""
    return json.dumps(value, **{"ensure_ascii": False, **options})


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
