"""Body of POST /v1/completions."""

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, model_validator

from plait.server.schema import MAX_LOGPROBS, SamplingFields, TokenId

MAX_PROMPTS = 1024

Text = Annotated[str, Tag("text")]
Ids = Annotated[list[TokenId], Field(min_length=1, fail_fast=True), Tag("ids")]
Texts = Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True), Tag("texts")]
OneIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
IdLists = Annotated[list[OneIds], Field(max_length=MAX_PROMPTS, fail_fast=True), Tag("id_lists")]


def _kind(prompt: Any) -> str:
    """A prompt's kind is that of its first element, so that a wrong one gets one plain message."""
    first = prompt[0] if isinstance(prompt, list) and prompt else None
    if isinstance(first, list):
        return "id_lists"
    if isinstance(first, str):
        return "texts"
    return "ids" if isinstance(prompt, list) else "text"


class CompletionRequest(SamplingFields):
    """Continue one prompt or several."""

    prompt: Annotated[Text | Ids | Texts | IdLists, Discriminator(_kind)]
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    """Most tokens to draw, 16 unless told; 0 with `echo` scores the prompt only."""
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: bool = False
    best_of: Annotated[int, Field(ge=1, le=128)] | None = None
    add_special_tokens: bool = True

    @model_validator(mode="after")
    def _possible(self) -> "CompletionRequest":
        if self.best_of not in {None, self.n}:
            raise ValueError("best_of is not supported; leave it out or set it to n")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens is at least 1 unless echo is set")
        return self

    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts, one or several, as a list of texts or of token-id lists."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        return [self.prompt] if isinstance(self.prompt[0], int) else self.prompt
