"""Draws tokens from logits. A draw is a function of the row's logits, its tokens and its wishes alone.

The order is that of SamplingParams. Log-probabilities are of the model's own distribution, before any
wish is applied, as vLLM reports them. No torch here: rows are numpy arrays of the vocabulary's size.
"""

import hashlib
import math
import struct

import numpy as np
from numpy.typing import NDArray

from plait.spec.errors import UserError
from plait.spec.sampling import SamplingParams, TokenLogprob

Row = NDArray[np.float64]


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


def is_plain(params: SamplingParams) -> bool:
    """Whether the row's draw is the largest logit and nothing else is asked."""
    return (
        params.temperature == 0
        and params.logprobs is None
        and params.prompt_logprobs is None
        and not (params.logit_bias or params.allowed_token_ids or params.min_tokens)
        and params.repetition_penalty == 1
        and params.presence_penalty == 0
        and params.frequency_penalty == 0
    )


def draw(
    logits_V: NDArray[np.float32],
    params: SamplingParams,
    tokens: NDArray[np.int32],
    prompt: int,
    stop: tuple[int, ...],
) -> int:
    """The next token of a row.

    Args:
        tokens: the row's prompt and output so far.
        prompt: how many of them are the prompt's.
        stop: tokens that `min_tokens` masks.
    """
    row = logits_V.astype(np.float64)
    _bias(row, params)
    if len(tokens) - prompt < params.min_tokens:
        _mask(row, stop)
    _penalise(row, params, tokens, tokens[prompt:])
    if params.temperature == 0:
        return int(row.argmax())
    row -= row.max()
    row /= params.temperature
    _filter(row, params)
    return _pick(np.exp(row), uniform(params.seed, params.choice, len(tokens)))


def _pick(weights: Row, share: float) -> int:
    """The token at which the running sum of weights passes `share` of their total.

    Sums of blocks find the block first: a running sum over all tokens is ten times as slow.
    """
    block = 256
    sums = np.cumsum(np.add.reduceat(weights, np.arange(0, len(weights), block)))
    target = share * float(sums[-1])
    # Where rounding carries the target to a sum's end, the last token with any weight is meant.
    at = min(int(np.searchsorted(sums, target, side="right")), int(np.searchsorted(sums, sums[-1])))
    inside = np.cumsum(weights[at * block : (at + 1) * block])
    rest = max(0.0, target - float(sums[at - 1])) if at else target
    token = min(int(np.searchsorted(inside, rest, side="right")), int(np.searchsorted(inside, inside[-1])))
    return at * block + token


def uniform(seed: int, choice: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing else: preemption and batching never change it."""
    key = struct.pack("<qqq", (seed + 2**63) % 2**64 - 2**63, choice, position)
    return (int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 11) * 2.0**-53


def _bias(row: Row, params: SamplingParams) -> None:
    for token, bias in params.logit_bias:
        row[token] += bias
    if params.allowed_token_ids:
        allowed = list(params.allowed_token_ids)
        kept = row[allowed]
        row[:] = -np.inf
        row[allowed] = kept


def _mask(row: Row, stop: tuple[int, ...]) -> None:
    """Take the stop tokens away, unless nothing else could be drawn."""
    inside = [token for token in stop if 0 <= token < len(row)]
    kept = row[inside]
    row[inside] = -np.inf
    if row.max() == -np.inf:
        row[inside] = kept


def _penalise(row: Row, params: SamplingParams, seen: NDArray[np.int32], drawn: NDArray[np.int32]) -> None:
    if params.repetition_penalty != 1:
        ids = np.unique(seen)
        row[ids] = np.where(
            row[ids] > 0, row[ids] / params.repetition_penalty, row[ids] * params.repetition_penalty
        )
    if (params.presence_penalty or params.frequency_penalty) and len(drawn):
        ids, counts = np.unique(drawn, return_counts=True)
        row[ids] -= params.presence_penalty + params.frequency_penalty * counts


def _filter(row: Row, params: SamplingParams) -> None:
    """Mask what min_p, top_k and top_p leave out; `row` is scaled and its largest value is 0."""
    if params.min_p > 0:
        row[row < math.log(params.min_p)] = -np.inf
    if 0 < params.top_k < len(row):
        row[row < np.partition(row, -params.top_k)[-params.top_k]] = -np.inf
    if params.top_p < 1:
        needed = params.top_p * float(np.exp(row).sum())
        keep = _nucleus(row, needed, 1024)
        mask = np.full(len(row), -np.inf)
        mask[keep] = row[keep]
        row[:] = mask


def _nucleus(row: Row, needed: float, near: int) -> NDArray[np.int64]:
    """The fewest likeliest tokens whose weights reach `needed`, looked for among the `near` likeliest first:
    sorting the whole vocabulary takes milliseconds."""
    near = min(near, len(row))
    ids = np.flatnonzero((row >= np.partition(row, -near)[-near]) & (row > -np.inf))
    order = ids[np.argsort(-row[ids], kind="stable")]
    steps = np.cumsum(np.exp(row[order]))
    if steps[-1] < needed and near < len(row):
        return _nucleus(row, needed, near * 8)
    return order[: int(np.searchsorted(steps, needed, side="left")) + 1]


def logprob(logits_V: NDArray[np.float32], token: int, top: int) -> TokenLogprob:
    """Log-probability of `token` and the `top` likeliest, by the model's own distribution."""
    row = logits_V.astype(np.float64)
    row -= row.max()
    row -= math.log(np.exp(row).sum())
    likeliest: list[int] = []
    if top > 0:
        top = min(top, len(row))
        near = np.flatnonzero(row >= np.partition(row, -top)[-top])
        likeliest = near[np.argsort(-row[near], kind="stable")][:top].tolist()
    return TokenLogprob(token, float(row[token]), tuple((i, float(row[i])) for i in likeliest))
