"""Torch references of every op: the oracle of the native kernels and their fallback. Slow and exact.

Each token is computed alone, from its own keys only, so that neither batch nor chunking changes a bit.
Legend: T tokens of all rows, R rows, H query heads, K key-value heads, D head size, S slots, P pages
of the longest row, N outputs, I inputs of a linear layer.
"""

import torch
from torch import Tensor


def store_kv(k_TKD: Tensor, v_TKD: Tensor, slots_T: Tensor, k_SKD: Tensor, v_SKD: Tensor) -> None:
    """Write the keys and values of new tokens into their slots."""
    k_SKD[slots_T.long()] = k_TKD.to(k_SKD.dtype)
    v_SKD[slots_T.long()] = v_TKD.to(v_SKD.dtype)


def attend(  # noqa: PLR0913 - an op has a flat signature
    q_THD: Tensor,
    k_SKD: Tensor,
    v_SKD: Tensor,
    tables_RP: Tensor,
    rows_R: Tensor,
    starts_R: Tensor,
    lens_R: Tensor,
    positions_T: Tensor,
    page: int,
    scale: float,
    window: int,
    softcap: float,
    threads: int,
) -> tuple[Tensor, Tensor]:
    """Causal attention of a flat row of tokens over paged keys and values.

    Args:
        tables_RP: int32; position j of a row lies in slot `tables[row, j // page] * page + j % page`.
        rows_R: int32; which row of `tables_RP` each row of this step uses.
        starts_R: int32, R + 1 entries; row r owns tokens [starts[r], starts[r + 1]).
        lens_R: int32; positions of each row that have keys.
        positions_T: int64; a query sees keys at positions <= its own, and > its own - window.
        window: 0 for no window.
        softcap: scores become softcap * tanh(score / softcap); 0 for none.
        threads: ignored here.

    Returns:
        (output [T, H, D] in the queries' type, log-sum-exp [T, H] float32). A query without any
        key gives 0 and minus infinity.
    """
    tokens, heads, size = q_THD.shape
    share = heads // k_SKD.shape[1]
    out_THD = torch.zeros((tokens, heads, size), dtype=q_THD.dtype)
    lse_TH = torch.full((tokens, heads), -torch.inf)
    starts, lens, positions = starts_R.tolist(), lens_R.tolist(), positions_T.tolist()
    for r, table in enumerate(rows_R.tolist()):
        at_J = torch.arange(lens[r])
        slots_J = tables_RP[table, at_J // page].long() * page + at_J % page
        k_JKD, v_JKD = k_SKD[slots_J].float(), v_SKD[slots_J].float()
        for t in range(starts[r], starts[r + 1]):
            first = max(0, positions[t] + 1 - window) if window else 0
            past = min(positions[t] + 1, lens[r])
            if first >= past:
                continue
            k_JHD = k_JKD[first:past].repeat_interleave(share, 1)
            v_JHD = v_JKD[first:past].repeat_interleave(share, 1)
            score_HJ = ((k_JHD * q_THD[t].float()).sum(-1) * scale).T.contiguous()
            if softcap:
                score_HJ = softcap * torch.tanh(score_HJ / softcap)
            lse_TH[t] = torch.logsumexp(score_HJ, -1)
            weight_JH = (score_HJ - lse_TH[t, :, None]).exp().T.contiguous()
            out_THD[t] = (weight_JH[:, :, None] * v_JHD).sum(0).to(q_THD.dtype)
    return out_THD, lse_TH


def pack(weights_NI: list[Tensor]) -> Tensor:
    """Stack weights in the layout that `linear` reads: here [N, I], a copy."""
    return torch.cat(weights_NI)


def linear(x_TI: Tensor, packed: Tensor, bias_N: Tensor | None, outputs: int, threads: int) -> Tensor:
    """`x @ weight.T + bias` in float32, one token at a time, so that no other token changes a bit.

    Args:
        packed: what `pack` made of the weight.
        outputs: N.
        threads: ignored here.
    """
    assert packed.shape[0] == outputs
    out_TN = torch.empty((x_TI.shape[0], outputs))
    for t in range(x_TI.shape[0]):
        # A fresh copy is aligned as every other token's: a matrix-vector product may look at that.
        torch.mv(packed, x_TI[t].clone(), out=out_TN[t])
    return out_TN if bias_N is None else out_TN.add_(bias_N)
