"""Which wishes for draws can be honoured; whoever asks need not be able to draw."""

import math

from plait.spec.errors import UserError
from plait.spec.sampling import SamplingParams


def check(params: SamplingParams, vocab: int) -> None:
    """Refuse wishes that no draw from `vocab` tokens can honour.

    Raises:
        UserError: names the field.
    """
    for name, low, high in (
        ("temperature", 0.0, math.inf),
        ("top_p", 0.0, 1.0),
        ("min_p", 0.0, 1.0),
        ("repetition_penalty", 0.0, math.inf),
        ("presence_penalty", -math.inf, math.inf),
        ("frequency_penalty", -math.inf, math.inf),
    ):
        value = getattr(params, name)
        if not (math.isfinite(value) and low <= value <= high):
            raise UserError(f"{name} is {value}; it must lie in [{low}, {high}]", name)
    for name in ("top_p", "repetition_penalty"):
        if getattr(params, name) == 0:
            raise UserError(f"{name} must be above 0", name)
    ids = {
        "logit_bias": [token for token, _ in params.logit_bias],
        "allowed_token_ids": params.allowed_token_ids,
    }
    for name, tokens in ids.items():
        if any(not 0 <= token < vocab for token in tokens):
            raise UserError(f"{name} names a token outside the vocabulary of {vocab}", name)
    if any(not math.isfinite(bias) for _, bias in params.logit_bias):
        raise UserError("logit_bias must be finite", "logit_bias")
    if params.grammar:
        _check_beside_grammar(params)


def _check_beside_grammar(params: SamplingParams) -> None:
    """What else decides which tokens may be drawn, or when a row ends, may leave a grammar none."""
    for name in ("allowed_token_ids", "ignore_eos", "min_tokens"):
        if getattr(params, name):
            raise UserError(f"{name} does not go with a prescribed form of the answer: leave it out", name)
