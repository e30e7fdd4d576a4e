"""What rows wish for, made into draws: `plait.kernels.sampling` draws from what is settled here.

A draw is a function of the row's logits, its tokens and its wishes alone. The order is that of
SamplingParams. Log-probabilities are of the model's own distribution, before any wish is applied, as vLLM
reports them. No torch here. Legend: L rows of logits, R rows that draw, A those that alter their logits,
V tokens of the vocabulary, N likeliest tokens.
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plait.kernels import sampling
from plait.kernels.sampling import UNIT, WISH, Logits, wish
from plait.spec.sampling import SamplingParams, TokenLogprob

LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Turn:
    """A row that draws its next token."""

    at: int
    """Its row of the logits."""
    params: SamplingParams
    tokens: NDArray[np.int32]
    """Its prompt and output so far."""
    prompt: int
    """How many of `tokens` are the prompt's."""
    stop: tuple[int, ...]
    """Tokens that `min_tokens` masks."""
    allowed_V: NDArray[np.bool_] | None = None
    """The only tokens that its grammar allows; None: it has none."""

    @property
    def too_short(self) -> bool:
        """Stop tokens are masked still."""
        return len(self.tokens) - self.prompt < self.params.min_tokens

    @property
    def alters(self) -> bool:
        """It draws from other logits than the model's."""
        params = self.params
        return (
            bool(params.logit_bias or params.allowed_token_ids or self.too_short)
            or self.allowed_V is not None
            or params.repetition_penalty != 1
            or params.presence_penalty != 0
            or params.frequency_penalty != 0
        )


@dataclass(frozen=True, slots=True)
class Entry:
    """A token whose log-probability is wanted."""

    at: int
    """The row of the logits that it is drawn from."""
    token: int
    top: int
    """How many of the likeliest tokens are wanted with it."""


def draw_rows(logits_LV: Logits, turns: Sequence[Turn], threads: int) -> list[int]:
    """The next token of each row. Asserts that the logits of each have a finite largest and no NaN."""
    if not turns:
        return []
    wishes_R = wishes(turns)
    at_R = np.fromiter((turn.at for turn in turns), np.int64, len(turns))
    alters_R = np.fromiter((turn.alters for turn in turns), bool, len(turns))
    tokens_R = np.empty(len(turns), np.int64)
    tokens_R[~alters_R] = sampling.draw(logits_LV, at_R[~alters_R], wishes_R[~alters_R], threads)
    if alters_R.any():
        altered_AV = logits_LV[at_R[alters_R]]
        assert np.isfinite(altered_AV.max(-1)).all(), "logits are not finite"
        for row_V, turn in zip(altered_AV, (turn for turn in turns if turn.alters), strict=True):
            _alter(row_V, turn)
        tokens_R[alters_R] = sampling.draw(
            altered_AV, np.arange(len(altered_AV)), wishes_R[alters_R], threads
        )
    assert (tokens_R >= 0).all(), "logits are not finite"
    return [int(token) for token in tokens_R]


def wishes(turns: Sequence[Turn]) -> NDArray[Any]:
    """What the rows wish for beside other logits, and their random numbers: [R] of type WISH."""
    return np.array([_wish(turn.params, len(turn.tokens)) for turn in turns], WISH)


def _wish(params: SamplingParams, position: int) -> tuple[Any, ...]:
    share = uniform(params.seed, params.choice, position) if params.temperature > 0 else 0.0
    return wish(params.temperature, params.min_p, params.top_k, params.top_p, share)


def uniform(seed: int, choice: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing else: preemption and batching never change it."""
    key = struct.pack("<qqq", (seed + 2**63) % 2**64 - 2**63, choice, position)
    return (int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 11) * 2.0**-53


def _alter(row_V: Logits, turn: Turn) -> None:
    """Apply all wishes that change logits, in place; what leaves float32's range stays at its end."""
    _bias(row_V, turn.params)
    if turn.allowed_V is not None:
        row_V[~turn.allowed_V] = -np.inf
    if turn.too_short:
        _mask(row_V, turn.stop)
    _penalise(row_V, turn.params, turn.tokens, turn.tokens[turn.prompt :])


def _bias(row_V: Logits, params: SamplingParams) -> None:
    for token, bias in params.logit_bias:
        row_V[token] = _fitted(float(row_V[token]) + bias)
    if params.allowed_token_ids:
        allowed = list(params.allowed_token_ids)
        kept = row_V[allowed]
        row_V[:] = -np.inf
        row_V[allowed] = kept


def _mask(row_V: Logits, stop: tuple[int, ...]) -> None:
    """Take the stop tokens away, unless nothing else could be drawn."""
    inside = [token for token in stop if 0 <= token < len(row_V)]
    kept = row_V[inside]
    row_V[inside] = -np.inf
    if row_V.max() == -np.inf:
        row_V[inside] = kept


def _penalise(
    row_V: Logits, params: SamplingParams, seen: NDArray[np.int32], drawn: NDArray[np.int32]
) -> None:
    if params.repetition_penalty != 1:
        ids = np.unique(seen)
        old, penalty = row_V[ids].astype(np.float64), params.repetition_penalty
        row_V[ids] = _fitted(np.where(old > 0, old / penalty, old * penalty))
    if (params.presence_penalty or params.frequency_penalty) and len(drawn):
        ids, counts = np.unique(drawn, return_counts=True)
        penalties = params.presence_penalty + params.frequency_penalty * counts
        row_V[ids] = _fitted(row_V[ids].astype(np.float64) - penalties)


def _fitted(values: Any) -> Any:
    """Finite values within float32's range; what is masked stays so."""
    return np.where(np.isinf(values), values, np.clip(values, -LARGEST, LARGEST))


def logprobs(logits_LV: Logits, entries: Sequence[Entry], threads: int) -> list[TokenLogprob]:
    """Log-probability of each token and of the likeliest in its place, by the model's own distribution."""
    if not entries:
        return []
    at_R, tokens_R, tops_R = np.array([(e.at, e.token, e.top) for e in entries], np.int64).T.copy()
    top = min(int(tops_R.max()), logits_LV.shape[1])
    largest_R, totals_R, ids_RN = sampling.score(logits_LV, at_R, top, threads)
    assert not np.isnan(largest_R).any(), "logits are not finite"
    norms_R = largest_R + np.log(totals_R * 2.0**-UNIT)  # float64
    drawn_R = logits_LV[at_R, tokens_R] - norms_R
    likeliest_RN = logits_LV[at_R[:, None], ids_RN] - norms_R[:, None]
    columns = zip(tokens_R.tolist(), drawn_R.tolist(), ids_RN.tolist(), likeliest_RN.tolist(), strict=True)
    return [
        TokenLogprob(token, drawn, tuple(zip(ids[: entry.top], likeliest[: entry.top], strict=True)))
        for entry, (token, drawn, ids, likeliest) in zip(entries, columns, strict=True)
    ]
