"""Fields of a chat that concern tools, and the calls in its answer."""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from plait.server.strict import Exact, Strict
from plait.spec.errors import UserError
from plait.spec.request import EndReason
from plait.text import tool_format
from plait.text.tokenizer import Tokenizer
from plait.text.tool_format import ToolFormat
from plait.text.tool_parser import Argued, Began, Found, Said, ToolParser

JsonObject = dict[str, Any]
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class Function(Strict):
    """What may be called."""

    name: Name
    description: str | None = None
    parameters: JsonObject | None = None
    """JSON Schema of the arguments."""
    strict: bool | None = None
    """Arguments obey `parameters`; where a call is required they do in any case."""


class Tool(Strict):
    """A function that may be called."""

    type: Literal["function"]
    function: Function


class FunctionName(Exact):
    """A function by its name."""

    name: str


class NamedChoice(Exact):
    """This function is to be called."""

    type: Literal["function"]
    function: FunctionName


class CalledFunction(Strict):
    """What was called, with which arguments."""

    name: str
    arguments: str
    """Text of a JSON object."""


class ToolCall(Strict):
    """A call that an earlier answer made."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction

    def plain(self) -> JsonObject:
        """As chat templates take it: arguments as an object.

        Raises:
            UserError: they are no text of one.
        """
        try:
            arguments = json.loads(self.function.arguments or "{}")
        except ValueError:
            arguments = None
        if not isinstance(arguments, dict):
            raise UserError("arguments of a tool call are the text of a JSON object", "messages.tool_calls")
        function = {"name": self.function.name, "arguments": arguments}
        return {"id": self.id, "type": self.type, "function": function}


class ToolFields(Strict):
    """What a chat says about tools."""

    tools: Annotated[list[Tool], Field(max_length=128, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    """auto where there are tools."""
    parallel_tool_calls: bool = True
    """An answer may make several calls."""

    @model_validator(mode="after")
    def _offered(self) -> "ToolFields":
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) != len(names):
            raise ValueError("two tools have the same name")
        if not names and self.tool_choice not in (None, "none", "auto"):
            raise ValueError("tool_choice is for requests with tools")
        if isinstance(self.tool_choice, NamedChoice) and self.tool_choice.function.name not in names:
            raise ValueError("tool_choice names a function that is not among the tools")
        return self

    @property
    def callable(self) -> tuple[Function, ...]:
        """Functions that the answer may call."""
        offered = tuple(tool.function for tool in self.tools or ())
        if isinstance(self.tool_choice, NamedChoice):
            return tuple(each for each in offered if each.name == self.tool_choice.function.name)
        return () if self.tool_choice == "none" else offered

    def shown(self) -> list[JsonObject]:
        """The tools as the template shows them to the model, written as the caller did."""
        if self.tool_choice == "none":
            return []
        return [tool.model_dump(exclude_unset=True) for tool in self.tools or ()]

    def calls_form(self, form: ToolFormat, tokenizer: Tokenizer) -> str:
        """The grammar of the answer; empty: any text.

        Raises:
            UserError: the parameters of a function cannot be enforced.
        """
        functions = self.callable
        several = self.parallel_tool_calls and not isinstance(self.tool_choice, NamedChoice)
        if not functions:
            return ""
        if self.tool_choice == "required" or isinstance(self.tool_choice, NamedChoice):
            return tool_format.of_calls(form, _enforced(functions), tokenizer, several=several)
        if several and not any(each.strict for each in functions):
            return ""
        kept_to = [each if each.strict else Function(name=each.name, parameters={}) for each in functions]
        return tool_format.of_text(form, _enforced(kept_to), tokenizer, several=several)


def _enforced(functions: Sequence[Function]) -> list[tool_format.Tool]:
    free = {"type": "object"}
    return [
        tool_format.Tool(each.name, free if each.parameters == {} else each.parameters) for each in functions
    ]


class Calls:
    """The calls in one answer as it comes."""

    def __init__(self, form: ToolFormat, prefix: str, *, named: bool) -> None:
        """`prefix` of the ids of calls; `named`: the caller chose the function."""
        self._parser = ToolParser(form)
        self._prefix, self._named = prefix, named
        self.made: list[JsonObject] = []
        """Calls as the whole answer tells them."""
        self.text = ""

    def deltas(self, text: str, *, last: bool) -> list[JsonObject]:
        """What the next text says, as deltas of a stream."""
        found = self._parser.push(text) + (self._parser.flush() if last else [])
        return [self._delta(each) for each in found]

    def _delta(self, found: Found) -> JsonObject:
        match found:
            case Said(text):
                self.text += text
                return {"content": text}
            case Began(name):
                function = {"name": name, "arguments": ""}
                call = {"id": f"{self._prefix}-{len(self.made)}", "type": "function", "function": function}
                self.made.append(call)
                return {"tool_calls": [{"index": len(self.made) - 1, **call, "function": dict(function)}]}
            case Argued(text):
                self.made[-1]["function"]["arguments"] += text
                return {"tool_calls": [{"index": len(self.made) - 1, "function": {"arguments": text}}]}

    def message(self) -> JsonObject:
        """The whole answer's message; `content` is null where calls are all that it says."""
        said = {"role": "assistant", "content": self.text if self.text or not self.made else None}
        return said | ({"tool_calls": self.made} if self.made else {})

    def finish(self, reason: str | None) -> str | None:
        """Why the answer ended: for its calls, unless the caller chose the function."""
        ended = reason == EndReason.STOP.value
        return "tool_calls" if ended and self.made and not self._named else reason
