"""Fields that completions and chat share, and how they become `SamplingParams`.

Every field is honoured or refused; ranges are checked here, before anything else sees the request.
"""

import secrets
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator

from plait.server.form import FormFields
from plait.server.strict import Strict
from plait.server.unsupported import refuse_unsupported
from plait.spec.errors import UserError
from plait.spec.sampling import SamplingParams

SEED_BITS = 63
MAX_LOGPROBS = 20
MAX_PRIORITY = 1000
MAX_IDS, MAX_STOPS = 1 << 18, 1024
"""Token ids in a list: more than any vocabulary has; and those that end a row."""

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
StopString = Annotated[str, Field(min_length=1, max_length=1024)]


class StreamOptions(Strict):
    """What a stream tells besides the text."""

    include_usage: bool = False
    """A last chunk without choices carries the usage."""
    continuous_usage_stats: bool = False
    """Every chunk carries the usage so far."""


class SamplingFields(FormFields):
    """How tokens are drawn, and how the answer is delivered."""

    model: str | None = None
    n: Annotated[int, Field(ge=1, le=128)] = 1
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    """0 and -1: all tokens."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    logit_bias: Annotated[
        dict[str, Annotated[float, Field(ge=-100, le=100)]] | None, Field(max_length=MAX_IDS)
    ] = None
    """Token id to what is added to its logit."""
    allowed_token_ids: Annotated[list[TokenId], Field(min_length=1, max_length=MAX_IDS)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_STOPS)] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: Annotated[int, Field(ge=0)] = 0
    skip_special_tokens: bool = True
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    """Keep the last so many tokens of the prompt; -1: as many as fit."""
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False
    """Name tokens of log-probabilities "token_id:ID", which is unambiguous."""
    stream: bool = False
    stream_options: StreamOptions | None = None
    timeout: Annotated[float, Field(gt=0, le=86400)] | None = None
    """Seconds until the request ends with DeadlineExceeded."""
    priority: Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] = 0
    """Lower goes first."""
    request_id: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None

    @model_validator(mode="after")
    def _together(self) -> "SamplingFields":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is for stream: true")
        if self.truncate_prompt_tokens == 0:
            raise ValueError("truncate_prompt_tokens is -1 or at least 1")
        return self

    def unknown(self) -> list[str]:
        """Names of fields that mean nothing to us.

        Raises:
            Unsupported: a field that means something elsewhere asks for what we do not do.
        """
        extras: Mapping[str, Any] = self.model_extra or {}
        refuse_unsupported(extras)
        return list(extras)

    def sampling(
        self, max_tokens: int, vocab_size: int, logprobs: int | None, grammar: str
    ) -> SamplingParams:
        """The sampling wishes of the first choice; `prompt_logprobs` as given in the field.

        Raises:
            UserError: a token id is outside the vocabulary, or min_tokens exceeds max_tokens.
        """
        if self.min_tokens > max_tokens:
            raise UserError(f"min_tokens is over max_tokens ({max_tokens})", "min_tokens")
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        seed = secrets.randbits(SEED_BITS) if self.seed is None else self.seed
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=_or(self.temperature, 1.0),
            top_k=max(0, self.top_k or 0),
            top_p=_or(self.top_p, 1.0),
            min_p=_or(self.min_p, 0.0),
            repetition_penalty=_or(self.repetition_penalty, 1.0),
            presence_penalty=_or(self.presence_penalty, 0.0),
            frequency_penalty=_or(self.frequency_penalty, 0.0),
            min_tokens=self.min_tokens,
            stop_token_ids=_in_vocabulary(self.stop_token_ids, vocab_size, "stop_token_ids"),
            ignore_eos=self.ignore_eos,
            stop=tuple(dict.fromkeys(stops)),
            include_stop=self.include_stop_str_in_output,
            logit_bias=_bias(self.logit_bias or {}, vocab_size),
            allowed_token_ids=_in_vocabulary(self.allowed_token_ids, vocab_size, "allowed_token_ids"),
            grammar=grammar,
            logprobs=logprobs,
            prompt_logprobs=self.prompt_logprobs,
            seed=seed & (2**SEED_BITS - 1),
        )


def _or(value: float | None, default: float) -> float:
    return default if value is None else float(value)


def _in_vocabulary(ids: list[int] | None, vocab_size: int, param: str) -> tuple[int, ...]:
    if ids and max(ids) >= vocab_size:
        raise UserError(f"{param} has {max(ids)}, but the largest token id is {vocab_size - 1}", param)
    return tuple(dict.fromkeys(ids or ()))


def _bias(bias: Mapping[str, float], vocab_size: int) -> tuple[tuple[int, float], ...]:
    for key in bias:
        if not (key.isascii() and key.isdigit() and len(key) < 11 and int(key) < vocab_size):
            raise UserError(f"logit_bias has a key that is no token id below {vocab_size}", "logit_bias")
    return tuple(sorted({int(key): float(value) for key, value in bias.items()}.items()))
