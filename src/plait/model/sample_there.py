"""Draws where the logits are, on a GPU: the tokens that `plait.model.sample.draw_rows` draws, bit for bit.

Rows that alter their logits are drawn on the host. Legend: L rows of logits, R rows that draw, V tokens of
the vocabulary.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plait.kernels.sampling import UNIT, WISH, Logits, exponential
from plait.model import sample
from plait.model.sample import Round


def brought(logits_LV: Tensor, at_R: NDArray[np.int64]) -> tuple[Logits, NDArray[np.int64]]:
    """Logits on the host, of a GPU only these rows; and where they are now."""
    if logits_LV.device.type == "cpu":
        return logits_LV.numpy(), at_R
    at = torch.from_numpy(at_R).to(logits_LV.device)
    return logits_LV[at].cpu().numpy(), np.arange(len(at_R))


def draw_rows(logits_LV: Tensor, rows: Round, threads: int) -> NDArray[np.int64]:
    """The next token of each row; see `plait.model.sample.draw_rows`.

    Args:
        threads: for rows that are drawn on the host.
    """
    tokens_R, plain = np.empty(len(rows.at_R), np.int64), rows.plain
    if len(plain):
        tokens_R[plain] = _draw(logits_LV, rows.at_R[plain], rows.wishes_R[plain])
    if rows.altering:
        places = list(rows.altering)
        at = torch.from_numpy(rows.at_R[places]).to(logits_LV.device)
        tokens_R[places] = sample.draw_altered(logits_LV[at].cpu().numpy(), rows, threads)
    assert (tokens_R >= 0).all(), "logits are not finite"
    return tokens_R


def _draw(logits_LV: Tensor, at_R: NDArray[np.int64], wishes_R: NDArray[Any]) -> NDArray[np.int64]:
    device = logits_LV.device
    logits_RV = logits_LV[torch.from_numpy(at_R).to(device)]
    best_R1 = logits_RV.argmax(-1, keepdim=True)
    # The largest of a row that holds a NaN is NaN: one look at the winners finds it.
    largest_R1 = logits_RV.gather(1, best_R1)
    tokens_R1 = best_R1
    if wishes_R["sharpness"].any():
        columns = {name: torch.tensor(wishes_R[name], device=device)[:, None] for name in WISH.names or ()}
        weights_RV = _weights(logits_RV, largest_R1, columns["sharpness"], columns["floor"])
        if wishes_R["top_k"].any() or (wishes_R["top_p"] < 1).any():
            weights_RV = _filtered(logits_RV, weights_RV, columns["top_k"], columns["top_p"])
        drawn_R1 = _picked(weights_RV, columns["share"])
        tokens_R1 = torch.where(columns["sharpness"] == 0, best_R1, drawn_R1)
    return torch.where(largest_R1.isfinite(), tokens_R1, -1)[:, 0].cpu().numpy()


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
