"""Bodies of POST /tokenize and /detokenize."""

from typing import Annotated

from pydantic import Field, model_validator

from plait.server.schema import TokenId
from plait.server.schema_chat import JsonObject, Messages
from plait.server.strict import Strict
from plait.server.tools import Tool


class TokenizeRequest(Strict):
    """A text, or a conversation to be rendered first: exactly one of them."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    """True for a text and False for a conversation, unless told."""
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: JsonObject | None = None
    tools: Annotated[list[Tool], Field(max_length=128, fail_fast=True)] | None = None
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("send either prompt or messages")
        return self


class DetokenizeRequest(Strict):
    """Token ids to be read as text."""

    model: str | None = None
    tokens: Annotated[list[TokenId], Field(fail_fast=True)]
