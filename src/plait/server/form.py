"""Fields that prescribe the form of an answer: OpenAI's `response_format`, and vLLM's words for the same."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from plait.server.strict import Exact, Strict
from plait.text import grammar

JsonObject = dict[str, Any]
Choices = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=4096)]


class NamedSchema(Exact):
    """A JSON Schema with a name."""

    name: str
    description: str | None = None
    definition: JsonObject | bool = Field(default=True, alias="schema")
    strict: bool | None = None
    """The answer obeys the schema, whatever this says."""


class ResponseFormat(Exact):
    """OpenAI's."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def _whole(self) -> "ResponseFormat":
        if (self.json_schema is not None) != (self.type == "json_schema"):
            raise ValueError("json_schema comes with the type json_schema, and only with it")
        return self

    def grammar(self) -> str:
        """Empty for any text. Raises UserError where it cannot be one."""
        if self.type == "text":
            return ""
        schema = self.json_schema.definition if self.json_schema else {"type": "object"}
        return grammar.of_schema(schema, "response_format")


class StructuredOutputs(Exact):
    """vLLM's: exactly one of them."""

    definition: JsonObject | bool | str | None = Field(default=None, alias="json")
    """A JSON Schema, or its text."""
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None
    """For Lark, or GBNF."""
    json_object: bool | None = None

    @model_validator(mode="after")
    def _one(self) -> "StructuredOutputs":
        given = (self.definition, self.regex, self.choice, self.grammar, self.json_object or None)
        if sum(each is not None for each in given) != 1:
            raise ValueError("give one of json, regex, choice, grammar and json_object")
        return self

    def text(self) -> str:
        """The grammar. Raises UserError where it cannot be one."""
        wishes: dict[str, tuple[Any, Callable[[Any, str], str]]] = {
            "json": (self.definition, grammar.of_schema),
            "regex": (self.regex, grammar.of_regex),
            "choice": (self.choice, grammar.of_choices),
            "grammar": (self.grammar, grammar.of_lark),
        }
        for name, (value, make) in wishes.items():
            if value is not None:
                return make(value, f"structured_outputs.{name}")
        return grammar.of_schema({"type": "object"}, "structured_outputs.json_object")


class FormFields(Strict):
    """What completions and chat take of all this."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: JsonObject | bool | str | None = None
    """The words of vLLM before 0.12, for the same."""
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = None

    @model_validator(mode="after")
    def _one_form(self) -> "FormFields":
        guided = (self.guided_json, self.guided_regex, self.guided_choice, self.guided_grammar)
        free = self.response_format is None or self.response_format.type == "text"
        given = (None if free else self.response_format, self.structured_outputs, *guided)
        if sum(each is not None for each in given) > 1:
            raise ValueError(
                "response_format, structured_outputs and guided_* say the same: give one of them"
            )
        return self

    def form(self) -> str:
        """The grammar of the answer; empty: any text.

        Raises:
            UserError: what is asked for cannot be one.
        """
        if self.response_format is not None and (text := self.response_format.grammar()):
            return text
        if self.structured_outputs is not None:
            return self.structured_outputs.text()
        guided: dict[str, tuple[Any, Callable[[Any, str], str]]] = {
            "guided_json": (self.guided_json, grammar.of_schema),
            "guided_regex": (self.guided_regex, grammar.of_regex),
            "guided_choice": (self.guided_choice, grammar.of_choices),
            "guided_grammar": (self.guided_grammar, grammar.of_lark),
        }
        return next((make(value, name) for name, (value, make) in guided.items() if value is not None), "")
