"""Body of POST /v1/chat/completions."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from plait.server.schema import MAX_LOGPROBS, SamplingFields
from plait.server.strict import Strict
from plait.server.tools import ToolCall, ToolFields
from plait.server.unsupported import refuse_unsupported

JsonObject = dict[str, Any]
MAX_MESSAGES, MAX_PARTS = 4096, 1024
"""Of a conversation, and of a message."""


class TextPart(Strict):
    """A part of a message. Only text is understood."""

    type: Literal["text"]
    text: str


class Message(Strict):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(max_length=MAX_PARTS, fail_fast=True)] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[ToolCall] | None = None
    """Of an earlier answer; its text may be missing then."""

    @model_validator(mode="after")
    def _said_something(self) -> "Message":
        if self.content is None and not self.tool_calls:
            raise ValueError("content is missing")
        if self.tool_calls and self.role != "assistant":
            raise ValueError("tool_calls are what an assistant said")
        refuse_unsupported(self.model_extra or {})
        return self

    def plain(self) -> JsonObject:
        """The message for a chat template: text parts joined by line ends."""
        content = self.content or ""
        if isinstance(content, list):
            content = "\n".join(part.text for part in content)
        named = {"name": self.name, "tool_call_id": self.tool_call_id}
        calls = {"tool_calls": [call.plain() for call in self.tool_calls]} if self.tool_calls else {}
        return {"role": self.role, "content": content, **calls} | {
            key: value for key, value in named.items() if value is not None
        }


Messages = Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]


class Conversation(ToolFields):
    """Messages, and how the model's template turns them into a prompt."""

    messages: Messages
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: JsonObject | None = None
    add_special_tokens: bool = False
    """The template already writes the special tokens."""

    def template_options(self) -> JsonObject:
        """Arguments of `Tokenizer.render_chat` besides the messages."""
        return {
            "add_generation_prompt": self.add_generation_prompt,
            "continue_final_message": self.continue_final_message,
            "extra": self.chat_template_kwargs,
            "tools": self.shown(),
        }


class ChatRequest(Conversation, SamplingFields):
    """Continue a conversation."""

    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    """Most tokens to draw; as many as fit unless told. Wins over `max_tokens`."""
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None

    @model_validator(mode="after")
    def _possible(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs is for logprobs: true")
        if self.callable and self.form():
            raise ValueError("a form of the answer does not go with tools: set tool_choice to none")
        return self

    @property
    def most_tokens(self) -> int | None:
        """Most tokens to draw, if told."""
        return self.max_completion_tokens or self.max_tokens
