"""Body of POST /v1/chat/completions."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from plait.server.schema import MAX_LOGPROBS, SamplingFields, Strict
from plait.server.unsupported import refuse_unsupported

JsonObject = dict[str, Any]


class TextPart(Strict):
    """A part of a message. Only text is understood."""

    type: Literal["text"]
    text: str


class Message(Strict):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: Annotated[list[JsonObject], Field(max_length=0)] | None = None
    """Not supported by this version: empty."""

    @model_validator(mode="after")
    def _said_something(self) -> "Message":
        if self.content is None:
            raise ValueError("content is missing")
        refuse_unsupported(self.model_extra or {})
        return self

    def plain(self) -> JsonObject:
        """The message for a chat template: text parts joined by line ends."""
        content = self.content
        if isinstance(content, list):
            content = "\n".join(part.text for part in content)
        named = {"name": self.name, "tool_call_id": self.tool_call_id}
        return {"role": self.role, "content": content} | {k: v for k, v in named.items() if v is not None}


class Conversation(Strict):
    """Messages, and how the model's template turns them into a prompt."""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
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
        return self

    @property
    def most_tokens(self) -> int | None:
        """Most tokens to draw, if told."""
        return self.max_completion_tokens or self.max_tokens
