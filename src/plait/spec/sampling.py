"""How tokens are drawn, and what a worker must know of a row before it can draw."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """A caller's wishes about drawing tokens. Defaults draw from the model's own distribution.

    Order of application (vLLM's): logit bias, allowed ids and grammar, min_tokens mask, penalties,
    temperature, min_p, top_k, top_p; temperature 0 takes the largest logit (lowest id on a tie).
    """

    max_tokens: int = 16
    """Most tokens to draw."""
    temperature: float = 1.0
    """0: greedy."""
    top_k: int = 0
    """Keep the k largest logits; 0: all."""
    top_p: float = 1.0
    """Keep the smallest set of tokens whose probability reaches top_p."""
    min_p: float = 0.0
    """Drop tokens less likely than min_p times the likeliest."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens seen in prompt or output."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens already drawn."""
    frequency_penalty: float = 0.0
    """Subtracted once for each time the token was drawn."""
    min_tokens: int = 0
    """Stop tokens are masked until this many tokens are drawn."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the row; the model's own end tokens are added unless `ignore_eos`."""
    ignore_eos: bool = False
    """The model's end tokens do not end the row."""
    stop: tuple[str, ...] = ()
    """Strings that end the row; searched in the text by the runtime, not by workers."""
    include_stop: bool = False
    """Leave the stop string in the returned text."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, added to its logit)."""
    allowed_token_ids: tuple[int, ...] = ()
    """If given, only these may be drawn."""
    grammar: str = ""
    """If given, the text obeys it, and ends where it is whole; made by `plait.text.grammar`."""
    logprobs: int | None = None
    """Log-probabilities of drawn tokens, and of this many likeliest; None: none."""
    prompt_logprobs: int | None = None
    """The same for the prompt's tokens; None: none."""
    seed: int = 0
    """Randomness is a function of (seed, choice, position) alone."""
    choice: int = 0
    """Which of the caller's `n` choices this row is."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A row's whole state, sent to a member of a group the first time that it sees the row."""

    request: int
    tokens: tuple[int, ...]
    """Prompt, then what was drawn so far."""
    prompt_tokens: int
    """How many of `tokens` are the prompt's."""
    sampling: SamplingParams
    stop_ids: tuple[int, ...]
    """Every token that ends the row, the model's own included where they apply."""
    adapter: int = 0
    """Number of the adapter that it is computed with; 0: none."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token, its log-probability (natural log) and the likeliest tokens in its place."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = field(default=())
    """(token, logprob), likeliest first."""


@dataclass(frozen=True, slots=True)
class Draw:
    """What one row drew in one step."""

    tokens: tuple[int, ...]
    """0..k tokens, in order."""
    stopped: bool = False
    """The last of `tokens` is one of the row's stop ids."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """One for each of `tokens` when the row asked for them."""
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    """For the prompt positions that this step computed, when the row asked for them: entry i
    is the token at `first + 1 + i` given what stands before it."""
    fault: str = ""
    """Why the row cannot go on as its wishes have it, in words; then `tokens` only end it, and are no part of
    the answer."""
