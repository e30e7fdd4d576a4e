"""Draws where the logits are, on a GPU: the tokens that `plait.model.sample.draw_rows` draws, bit for bit.

Rows that alter their logits are drawn on the host. Legend: L rows of logits, R rows that draw, V tokens of
the vocabulary.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from plait.kernels.sampling import UNIT, Logits, exponential
from plait.model import sample
from plait.model.sample import Entry, Turn, wishes

Placed = TypeVar("Placed", Turn, Entry)


def brought(logits_LV: Tensor, wanted: Sequence[Placed]) -> tuple[Logits, Sequence[Placed]]:
    """Logits on the host, of a GPU only the rows that are `wanted`; and those with their new places."""
    if logits_LV.device.type == "cpu":
        return logits_LV.numpy(), wanted
    at = torch.tensor([each.at for each in wanted], dtype=torch.int64, device=logits_LV.device)
    return logits_LV[at].cpu().numpy(), [replace(each, at=i) for i, each in enumerate(wanted)]


def draw_rows(logits_LV: Tensor, turns: Sequence[Turn], threads: int) -> list[int]:
    """The next token of each row; see `plait.model.sample.draw_rows`.

    Args:
        threads: for rows that are drawn on the host.
    """
    there = [turn for turn in turns if not turn.alters]
    here = [turn for turn in turns if turn.alters]
    drawn_there = iter(_draw(logits_LV, there) if there else [])
    drawn_here = iter(sample.draw_rows(*brought(logits_LV, here), threads))
    return [next(drawn_here if turn.alters else drawn_there) for turn in turns]


def _draw(logits_LV: Tensor, turns: Sequence[Turn]) -> list[int]:
    device = logits_LV.device
    logits_RV = logits_LV[torch.tensor([turn.at for turn in turns], device=device)]
    best_R1 = logits_RV.argmax(-1, keepdim=True)
    # The largest of a row that holds a NaN is NaN: one look at the winners finds it.
    largest_R1 = logits_RV.gather(1, best_R1)
    tokens_R1 = best_R1
    if any(turn.params.temperature > 0 for turn in turns):
        wishes_R = wishes(turns)
        columns = {
            name: torch.tensor(wishes_R[name], device=device)[:, None] for name in wishes_R.dtype.names
        }
        weights_RV = _weights(logits_RV, largest_R1, columns["sharpness"], columns["floor"])
        if any(turn.params.top_k or turn.params.top_p < 1 for turn in turns):
            weights_RV = _filtered(logits_RV, weights_RV, columns["top_k"], columns["top_p"])
        drawn_R1 = _picked(weights_RV, columns["share"])
        tokens_R1 = torch.where(columns["sharpness"] == 0, best_R1, drawn_R1)
    tokens: list[int] = torch.where(largest_R1.isfinite(), tokens_R1, -1)[:, 0].tolist()
    assert min(tokens) >= 0, "logits are not finite"
    return tokens


def _weights(logits_RV: Tensor, largest_R1: Tensor, sharpness_R1: Tensor, floor_R1: Tensor) -> Tensor:
    scaled_RV = (logits_RV - largest_R1) * sharpness_R1
    p_RV, n_RV = exponential(torch.maximum(scaled_RV, floor_R1))
    unit_RV = ((n_RV.int() + (127 + UNIT)) << 23).view(torch.float32)  # 2^(n + UNIT)
    return (p_RV * unit_RV).round().long().masked_fill_(scaled_RV < floor_R1, 0)


def _filtered(logits_RV: Tensor, weights_RV: Tensor, top_k_R1: Tensor, top_p_R1: Tensor) -> Tensor:
    """Weights without what top_k and then top_p leave out."""
    vocab = logits_RV.shape[1]
    ranked_RV, order_RV = logits_RV.sort(stable=True, dim=-1, descending=True)
    last_R1 = torch.where((top_k_R1 > 0) & (top_k_R1 < vocab), top_k_R1, vocab) - 1
    weights_RV = weights_RV.gather(-1, order_RV)
    weights_RV = weights_RV.masked_fill(ranked_RV < ranked_RV.gather(-1, last_R1), 0)
    sums_RV = weights_RV.cumsum(-1)
    total_R1 = sums_RV[:, -1:]
    needed_R1 = torch.minimum((top_p_R1 * total_R1.double()).ceil().long(), total_R1)
    # A token stays while those before it do not reach what is needed.
    stays_RV = (sums_RV - weights_RV < needed_R1) | (top_p_R1 >= 1)
    return torch.zeros_like(weights_RV).scatter(-1, order_RV, weights_RV * stays_RV)


def _picked(weights_RV: Tensor, share_R1: Tensor) -> Tensor:
    """The token at which the running sum of weights passes `share` of their total."""
    sums_RV = weights_RV.cumsum(-1)
    total_R1 = sums_RV[:, -1:].contiguous()
    target_R1 = torch.minimum((share_R1 * total_R1.double()).long(), total_R1 - 1)
    return torch.searchsorted(sums_RV, target_R1, right=True).clamp_(max=weights_RV.shape[1] - 1)
