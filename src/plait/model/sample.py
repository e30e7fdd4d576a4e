"""What rows wish for, made into draws: `plait.kernels.sampling` draws from what is settled here.

A draw is a function of the row's logits, its tokens and its wishes alone. The order is that of
SamplingParams. Log-probabilities are of the model's own distribution, before any wish is applied, as vLLM
reports them. No torch here. Legend: L rows of logits, R rows that draw, A those that alter their logits,
V tokens of the vocabulary, N likeliest tokens.
"""

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plait.kernels import sampling
from plait.kernels.sampling import UNIT, WISH, Logits, wish
from plait.spec.sampling import SamplingParams, TokenLogprob

LARGEST = float(np.finfo(np.float32).max)
_GOLDEN, *_MIX = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_ONE, _11, _27, _30, _31 = (np.uint64(n) for n in (1, 11, 27, 30, 31))
"""Of splitmix64 (Steele, Lea, Flood 2014)."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A row that draws its next token."""

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
        return always_alters(self.params) or self.allowed_V is not None or self.too_short


def always_alters(params: SamplingParams) -> bool:
    """Whether a row with these wishes draws all its tokens from other logits than the model's."""
    return (
        bool(params.logit_bias or params.allowed_token_ids or params.grammar)
        or params.repetition_penalty != 1
        or params.presence_penalty != 0
        or params.frequency_penalty != 0
    )


@dataclass(frozen=True, slots=True)
class Round:
    """Rows that draw their next tokens, in arrays."""

    at_R: NDArray[np.int64]
    """Their rows of the logits."""
    wishes_R: NDArray[Any]
    """What they wish for beside other logits, and their random numbers, of type WISH."""
    altering: Mapping[int, Turn]
    """Place of a row -> the row, if it alters its logits."""

    @staticmethod
    def of(at: Sequence[int], rows: Sequence[Turn]) -> "Round":
        """Of rows one by one."""
        wishes = np.array([wish_of(row.params) for row in rows], WISH)
        streams = [stream_of(row.params.seed, row.params.choice) for row in rows]
        lengths = np.array([len(row.tokens) for row in rows], np.int64)
        wishes["share"] = shares(np.array(streams, np.uint64), lengths)
        altering = {place: row for place, row in enumerate(rows) if row.alters}
        return Round(np.array(at, np.int64), wishes, altering)

    @property
    def plain(self) -> NDArray[np.int64]:
        """Places of the rows that draw from the model's logits."""
        every = np.arange(len(self.at_R))
        return np.delete(every, list(self.altering)) if self.altering else every


def draw_rows(logits_LV: Logits, rows: Round, threads: int) -> NDArray[np.int64]:
    """The next token of each row. Asserts that the logits of each have a finite largest and no NaN."""
    if not rows.altering:
        tokens_R = sampling.draw(logits_LV, rows.at_R, rows.wishes_R, threads)
    else:
        tokens_R, plain = np.empty(len(rows.at_R), np.int64), rows.plain
        tokens_R[plain] = sampling.draw(logits_LV, rows.at_R[plain], rows.wishes_R[plain], threads)
        places = list(rows.altering)
        altered_AV = logits_LV[rows.at_R[places]]
        tokens_R[places] = draw_altered(altered_AV, rows, threads)
    assert (tokens_R >= 0).all(), "logits are not finite"
    return tokens_R


def draw_altered(logits_AV: Logits, rows: Round, threads: int) -> NDArray[np.int64]:
    """The next tokens of the rows that alter their logits, of which these are copies; -1 as in
    `plait.kernels.sampling`."""
    assert np.isfinite(logits_AV.max(-1)).all(), "logits are not finite"
    for row_V, turn in zip(logits_AV, rows.altering.values(), strict=True):
        _alter(row_V, turn)
    wishes_A = rows.wishes_R[list(rows.altering)]
    return sampling.draw(logits_AV, np.arange(len(logits_AV)), wishes_A, threads)


def wish_of(params: SamplingParams) -> tuple[Any, ...]:
    """An element of an array of WISH; the random number is to come."""
    return wish(params.temperature, params.min_p, params.top_k, params.top_p, 0.0)


def stream_of(seed: int, choice: int) -> int:
    """Number of a row's stream of random numbers: 64 bits that depend on nothing else."""
    key = struct.pack("<qq", (seed + 2**63) % 2**64 - 2**63, choice)
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")


def shares(streams_R: NDArray[np.uint64], positions_R: NDArray[np.int64]) -> NDArray[np.float64]:
    """Random numbers in [0, 1) of rows that draw the tokens of these positions: those of splitmix64 with the
    position for a counter. They depend on nothing else: preemption and batching never change them."""
    z_R = streams_R + (positions_R.astype(np.uint64) + _ONE) * _GOLDEN
    z_R = (z_R ^ (z_R >> _30)) * _MIX[0]
    z_R = (z_R ^ (z_R >> _27)) * _MIX[1]
    return ((z_R ^ (z_R >> _31)) >> _11) * 2.0**-53


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


def logprobs(
    logits_LV: Logits,
    at_R: NDArray[np.int64],
    tokens_R: NDArray[np.int64],
    tops_R: Sequence[int],
    threads: int,
) -> list[TokenLogprob]:
    """Log-probability of each token and of the likeliest in its place, by the model's own distribution.

    Args:
        at_R: the row of the logits that each token is drawn from.
        tops_R: how many of the likeliest are wanted with each.
    """
    if not len(at_R):
        return []
    top = min(max(tops_R), logits_LV.shape[1])
    largest_R, totals_R, ids_RN = sampling.score(logits_LV, at_R, top, threads)
    assert not np.isnan(largest_R).any(), "logits are not finite"
    norms_R = largest_R + np.log(totals_R * 2.0**-UNIT)  # float64
    drawn_R = (logits_LV[at_R, tokens_R] - norms_R).tolist()
    if not top:
        return [TokenLogprob(*each) for each in zip(tokens_R.tolist(), drawn_R, strict=True)]
    likeliest_RN = logits_LV[at_R[:, None], ids_RN] - norms_R[:, None]
    columns = zip(tokens_R.tolist(), drawn_R, ids_RN.tolist(), likeliest_RN.tolist(), tops_R, strict=True)
    return [
        TokenLogprob(token, drawn, tuple(zip(ids[:wanted], likeliest[:wanted], strict=True)))
        for token, drawn, ids, likeliest, wanted in columns
    ]
