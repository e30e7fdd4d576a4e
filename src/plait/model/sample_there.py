"""Draws where the logits are: `plait.model.sample.draw` for many rows at once, on a GPU.

It knows temperature, min_p, top_k and top_p; rows that wish for more are drawn on the host. The order of the
filters and their ties are those of `draw`, in float64 as there. Legend: R rows, V tokens of the vocabulary.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from plait.model.sample import uniform
from plait.spec.sampling import SamplingParams


def drawable(params: SamplingParams) -> bool:
    """Whether `draw_rows` knows all that this row wishes for."""
    return (
        params.temperature > 0
        and params.logprobs is None
        and params.prompt_logprobs is None
        and not (params.logit_bias or params.allowed_token_ids or params.min_tokens)
        and params.repetition_penalty == 1
        and params.presence_penalty == 0
        and params.frequency_penalty == 0
    )


def draw_rows(logits_RV: Tensor, params_R: Sequence[SamplingParams], lengths_R: Sequence[int]) -> list[int]:
    """The next token of each row.

    Args:
        lengths_R: tokens that each row has, prompt and output.
    """

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=logits_RV.device)[:, None]

    scaled_RV = logits_RV.double()
    scaled_RV -= scaled_RV.amax(-1, keepdim=True)
    scaled_RV /= column([p.temperature for p in params_R])
    least = column([math.log(p.min_p) if p.min_p > 0 else -math.inf for p in params_R])
    scaled_RV.masked_fill_(scaled_RV < least, -math.inf)
    if any(0 < p.top_k < logits_RV.shape[1] or p.top_p < 1 for p in params_R):
        order_RV = logits_RV.sort(stable=True, dim=-1, descending=True).indices
        ranked_RV = _filtered(scaled_RV.gather(-1, order_RV), params_R, column([p.top_p for p in params_R]))
        scaled_RV = scaled_RV.scatter(-1, order_RV, ranked_RV)
    sums_RV = scaled_RV.exp().cumsum(-1)
    shares = column([uniform(p.seed, p.choice, n) for p, n in zip(params_R, lengths_R, strict=True)])
    total = sums_RV[:, -1:].contiguous()
    token = torch.searchsorted(sums_RV, shares * total, right=True)
    # Where rounding carries the target to the end, the last token with any weight is meant.
    return torch.minimum(token, torch.searchsorted(sums_RV, total))[:, 0].tolist()


def _filtered(ranked_RV: Tensor, params_R: Sequence[SamplingParams], top_p: Tensor) -> Tensor:
    """Scaled logits, likeliest first, without what top_k and then top_p leave out."""
    vocab = ranked_RV.shape[1]
    last = [(p.top_k if 0 < p.top_k < vocab else vocab) - 1 for p in params_R]
    least = ranked_RV.gather(-1, torch.tensor(last, device=ranked_RV.device)[:, None])
    ranked_RV = ranked_RV.masked_fill(ranked_RV < least, -math.inf)
    weights_RV = ranked_RV.exp()
    sums_RV = weights_RV.cumsum(-1)
    # A token stays while those before it do not reach the share.
    before_RV = torch.nn.functional.pad(sums_RV[:, :-1], (1, 0))
    stays_RV = (before_RV < top_p * sums_RV[:, -1:]) | (top_p >= 1)
    return ranked_RV.masked_fill(~stays_RV, -math.inf)
