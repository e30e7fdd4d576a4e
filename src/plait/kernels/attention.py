"""Attention over a paged pool of keys and values: layout, native ops, and the torch references.

The pool of a layer is one tensor kv_BKXE, private to these ops: B blocks of L tokens, K heads, X keys then
values, E = L * W elements, where W is the head size rounded up to 16. Keys are ordered [D / e, L, e] with
e elements in 4 bytes, values [L / p, W, p] with pairs of tokens (p = 2) in bf16, else p = 1. Blocks hold
L = 16 tokens where pages are multiples of that, else 1. Slot s is lane s % L of block s // L. A pool of int8
has whole numbers, and after the keys, and after the values, of a block and head one float32 scale for each of
its L tokens: so scales move with what they scale.

Legend: T tokens of all rows, R rows, H query heads, K key-value heads, D head size, J keys of a row.
"""

from typing import Any

import torch
from torch import Tensor

from plait.kernels.choice import choose
from plait.kernels.memory import on_large_pages
from plait.kernels.registration import register

LANES = 16
"""Tokens of a packed block."""
SCALE_BYTES = 4
"""Bytes of a token's scale, in a pool of int8."""
SCHEMAS = (
    "paged_store(Tensor k, Tensor v, Tensor slots, Tensor(a!) kv) -> ()",
    "paged_attend(Tensor q, Tensor kv, Tensor tables, Tensor rows, Tensor starts, Tensor lens, "
    "Tensor positions, int page, int first, int stride, float scale, int window, float softcap, int threads)"
    " -> (Tensor, Tensor)",
    "paged_partial(Tensor q, Tensor kv, Tensor tables, Tensor rows, Tensor starts, Tensor lens, "
    "Tensor positions, int page, int first, int stride, float scale, float softcap, int threads)"
    " -> (Tensor, Tensor)",
    "merge_attention(Tensor[] outs, Tensor[] lses) -> (Tensor, Tensor)",
)


def pool_shape(
    slots: int, kv_heads: int, size: int, page: int, scaled: bool = False, gpu: bool = False
) -> tuple[int, ...]:
    """Shape of one layer's pool for `slots` tokens, a multiple of `page`, and heads of `size`.

    Args:
        scaled: of int8, with scales.
        gpu: kv_BKXLD of `plait.kernels.triton.pool`, else kv_BKXE.
    """
    lanes = LANES if page % LANES == 0 else 1
    assert not (scaled and gpu), "no int8 pool on a GPU"
    tail = (lanes, size) if gpu else (lanes * (_padded(size) + (SCALE_BYTES if scaled else 0)),)
    return slots // lanes, kv_heads, 2, *tail


def empty_pool(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory for pools; on a CPU it is taken as it is first written."""
    return (
        on_large_pages(shape, dtype)
        if device.type == "cpu"
        else torch.empty(shape, dtype=dtype, device=device)
    )


class Native:
    """The compiled ops, over addresses of tensors; signatures are those of `Reference`."""

    def __init__(self, isa: str | None = None) -> None:
        """For one instruction set of those that this CPU runs; None: the one in use."""
        choice = choose()
        assert choice.native is not None, "make this only where native kernels are in use"
        self.native, self.isa = choice.native, isa or choice.isa

    def paged_store(self, k_TKD: Tensor, v_TKD: Tensor, slots_T: Tensor, kv_BKXE: Tensor) -> None:
        """Write the keys and values of new tokens into their slots."""
        assert slots_T.dtype == torch.int32, "slots are int32"
        tokens, heads, size = k_TKD.shape
        assert heads == kv_BKXE.shape[1], "keys do not fit the pool"
        rounded = kv_BKXE.dtype == torch.int8
        taken = k_TKD.dtype if rounded else kv_BKXE.dtype
        assert taken in (torch.float32, torch.bfloat16), f"no store from {taken}"
        k_TKD, v_TKD = (dense(new_TKD.to(taken)) for new_TKD in (k_TKD, v_TKD))
        self.native.paged_store(
            k_TKD.data_ptr(),
            v_TKD.data_ptr(),
            k_TKD.stride(0),
            v_TKD.stride(0),
            slots_T.data_ptr(),
            kv_BKXE.data_ptr(),
            tokens,
            heads,
            size,
            lanes_of(kv_BKXE, size),
            taken == torch.bfloat16,
            rounded,
        )

    def paged_attend(  # noqa: PLR0913 - an op has a flat signature
        self,
        q_THD: Tensor,
        kv_BKXE: Tensor,
        tables_RP: Tensor,
        rows_R: Tensor,
        starts_R: Tensor,
        lens_R: Tensor,
        positions_T: Tensor,
        page: int,
        first: int,
        stride: int,
        scale: float,
        window: int,
        softcap: float,
        threads: int,
    ) -> tuple[Tensor, Tensor]:
        """Causal attention over paged keys and values; see `Reference.paged_attend`."""
        step = (tables_RP, rows_R, starts_R, lens_R, positions_T, page, first, stride)
        return self._attend(q_THD, kv_BKXE, *step, scale, window, softcap, threads, wide=False)

    def paged_partial(  # noqa: PLR0913 - an op has a flat signature
        self,
        q_THD: Tensor,
        kv_BKXE: Tensor,
        tables_RP: Tensor,
        rows_R: Tensor,
        starts_R: Tensor,
        lens_R: Tensor,
        positions_T: Tensor,
        page: int,
        first: int,
        stride: int,
        scale: float,
        softcap: float,
        threads: int,
    ) -> tuple[Tensor, Tensor]:
        """Attention to a part of the keys, to be merged; see `Reference.paged_partial`."""
        step = (tables_RP, rows_R, starts_R, lens_R, positions_T, page, first, stride)
        return self._attend(q_THD, kv_BKXE, *step, scale, 0, softcap, threads, wide=True)

    def _attend(  # noqa: PLR0913 - as the ops
        self,
        q_THD: Tensor,
        kv_BKXE: Tensor,
        tables_RP: Tensor,
        rows_R: Tensor,
        starts_R: Tensor,
        lens_R: Tensor,
        positions_T: Tensor,
        page: int,
        first: int,
        stride: int,
        scale: float,
        window: int,
        softcap: float,
        threads: int,
        *,
        wide: bool,
    ) -> tuple[Tensor, Tensor]:
        tokens, heads, size = q_THD.shape
        lanes = lanes_of(kv_BKXE, size)
        assert size in range(8, 257, 8), f"head size {size} is not a multiple of 8 up to 256"
        assert kv_BKXE.dtype in (q_THD.dtype, torch.int8), "queries and pool of one type, or a pool of int8"
        assert q_THD.dtype in (torch.float32, torch.bfloat16), f"no attention in {q_THD.dtype}"
        assert page % lanes == 0, "a page is no whole number of blocks"
        assert tables_RP.dtype == torch.int32, "tables are int32"
        assert positions_T.dtype == torch.int64, "positions are int64"
        q_THD = dense(q_THD)
        out_THD = torch.empty((tokens, heads, size), dtype=torch.float32 if wide else q_THD.dtype)
        lse_TH = torch.empty((tokens, heads))
        self.native.paged_attend(
            self.isa,
            q_THD.data_ptr(),
            q_THD.stride(0),
            kv_BKXE.data_ptr(),
            tables_RP.data_ptr(),
            tables_RP.stride(0),
            rows_R.data_ptr(),
            starts_R.data_ptr(),
            lens_R.data_ptr(),
            positions_T.data_ptr(),
            out_THD.data_ptr(),
            lse_TH.data_ptr(),
            rows_R.shape[0],
            heads,
            kv_BKXE.shape[1],
            size,
            lanes,
            page,
            first,
            stride,
            scale,
            window,
            softcap,
            q_THD.dtype == torch.bfloat16,
            kv_BKXE.dtype == torch.int8,
            wide,
            threads,
        )
        return out_THD, lse_TH

    def merge_attention(self, outs: list[Tensor], lses: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Join attention over disjoint sets of keys; see `Reference.merge_attention`."""
        outs = [out_THD.contiguous() for out_THD in outs]
        lses = [lse_TH.contiguous() for lse_TH in lses]
        assert len({(out.shape, out.dtype) for out in outs}) == 1, "parts of one shape and type"
        assert len(outs) == len(lses) <= 64, "at most 64 parts, each with its log-sum-exp"
        out_THD, lse_TH = torch.empty_like(outs[0]), torch.empty_like(lses[0])
        self.native.merge_attention(
            self.isa,
            [out.data_ptr() for out in outs],
            [lse.data_ptr() for lse in lses],
            lse_TH.numel(),
            out_THD.shape[-1],
            out_THD.dtype == torch.bfloat16,
            out_THD.data_ptr(),
            lse_TH.data_ptr(),
        )
        return out_THD, lse_TH


class Reference:
    """The same ops in torch: oracle and fallback. Slow; each token is computed alone, from its own keys."""

    def paged_store(self, k_TKD: Tensor, v_TKD: Tensor, slots_T: Tensor, kv_BKXE: Tensor) -> None:
        """Write the keys and values of new tokens into their slots.

        A pool of int8 gets each head of a token rounded to whole numbers of its largest element / 127.

        Args:
            slots_T: int32.
        """
        keys_BLKD, values_BLPKD = _views(kv_BKXE, k_TKD.shape[2])
        lanes = keys_BLKD.shape[1]
        at = slots_T.long() // lanes, slots_T.long() % lanes
        if kv_BKXE.dtype == torch.int8:
            (k_TKD, k_TK), (v_TKD, v_TK) = _rounded(k_TKD), _rounded(v_TKD)
            for scales_BLK, new_TK in zip(_scales(kv_BKXE, k_TKD.shape[2]), (k_TK, v_TK), strict=True):
                scales_BLK[at] = new_TK
        keys_BLKD[at] = k_TKD.to(kv_BKXE.dtype).unflatten(-1, keys_BLKD.shape[3:])
        pair = values_BLPKD.shape[2]
        values_BLPKD[at[0], at[1] // pair, at[1] % pair] = v_TKD.to(kv_BKXE.dtype)

    def paged_attend(  # noqa: PLR0913 - an op has a flat signature
        self,
        q_THD: Tensor,
        kv_BKXE: Tensor,
        tables_RP: Tensor,
        rows_R: Tensor,
        starts_R: Tensor,
        lens_R: Tensor,
        positions_T: Tensor,
        page: int,
        first: int,
        stride: int,
        scale: float,
        window: int,
        softcap: float,
        threads: int,
    ) -> tuple[Tensor, Tensor]:
        """Causal attention of a flat row of tokens over paged keys and values.

        Args:
            tables_RP: int32; key j of a row lies in slot `tables[row, j // page] * page + j % page`.
            rows_R: int32; which row of `tables_RP` each row of this step uses.
            starts_R: int32, R + 1 entries; row r owns tokens [starts[r], starts[r + 1]).
            lens_R: int32; how many keys each row has here.
            positions_T: int64; a query sees keys at positions <= its own, and > its own - window.
            first: position of a row's key 0.
            stride: positions between two neighbouring keys.
            window: 0 for no window.
            softcap: scores become softcap * tanh(score / softcap); 0 for none.
            threads: ignored here.

        Returns:
            (output [T, H, D] in the queries' type, log-sum-exp [T, H] float32). A query without any
            key gives 0 and minus infinity.
        """
        step = (tables_RP, rows_R, starts_R, lens_R, positions_T, page, first, stride)
        return self._attend(q_THD, kv_BKXE, *step, scale, window, softcap, q_THD.dtype)

    def paged_partial(  # noqa: PLR0913 - an op has a flat signature
        self,
        q_THD: Tensor,
        kv_BKXE: Tensor,
        tables_RP: Tensor,
        rows_R: Tensor,
        starts_R: Tensor,
        lens_R: Tensor,
        positions_T: Tensor,
        page: int,
        first: int,
        stride: int,
        scale: float,
        softcap: float,
        threads: int,
    ) -> tuple[Tensor, Tensor]:
        """As `paged_attend` without a window, for keys that are not all: the output is float32, so that
        merging rounds once."""
        step = (tables_RP, rows_R, starts_R, lens_R, positions_T, page, first, stride)
        return self._attend(q_THD, kv_BKXE, *step, scale, 0, softcap, torch.float32)

    def _attend(  # noqa: PLR0913 - as the ops
        self,
        q_THD: Tensor,
        kv_BKXE: Tensor,
        tables_RP: Tensor,
        rows_R: Tensor,
        starts_R: Tensor,
        lens_R: Tensor,
        positions_T: Tensor,
        page: int,
        first: int,
        stride: int,
        scale: float,
        window: int,
        softcap: float,
        out_type: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        tokens, heads, size = q_THD.shape
        keys_BLKD, values_BLPKD = _views(kv_BKXE, size)
        values_BLKD = values_BLPKD.flatten(1, 2)
        lanes, share = keys_BLKD.shape[1], heads // kv_BKXE.shape[1]
        out_THD = torch.zeros((tokens, heads, size), dtype=out_type)
        lse_TH = torch.full((tokens, heads), -torch.inf)
        starts, lens = starts_R.tolist(), lens_R.tolist()
        for r, table in enumerate(rows_R.tolist()):
            at_J = torch.arange(lens[r])
            slots_J = tables_RP[table, at_J // page].long() * page + at_J % page
            at = slots_J // lanes, slots_J % lanes
            k_JKD, v_JKD = keys_BLKD[at].flatten(2).float(), values_BLKD[at].float()
            if kv_BKXE.dtype == torch.int8:
                k_JK, v_JK = (scales_BLK[at] for scales_BLK in _scales(kv_BKXE, size))
                k_JKD, v_JKD = k_JKD * k_JK[..., None], v_JKD * v_JK[..., None]
            for t in range(starts[r], starts[r + 1]):
                behind_J = positions_T[t] - (first + at_J * stride)
                seen_J = (behind_J >= 0) & (behind_J < window if window else True)
                if not seen_J.any():
                    continue
                k_JHD = k_JKD[seen_J].repeat_interleave(share, 1)
                v_JHD = v_JKD[seen_J].repeat_interleave(share, 1)
                score_HJ = ((k_JHD * q_THD[t].float()).sum(-1) * scale).T.contiguous()
                if softcap:
                    score_HJ = softcap * torch.tanh(score_HJ / softcap)
                lse_TH[t] = torch.logsumexp(score_HJ, -1)
                weight_JH = (score_HJ - lse_TH[t, :, None]).exp().T.contiguous()
                out_THD[t] = (weight_JH[:, :, None] * v_JHD).sum(0).to(out_type)
        return out_THD, lse_TH

    def merge_attention(self, outs: list[Tensor], lses: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Join attention of the same queries over disjoint sets of keys.

        Args:
            outs: outputs [T, H, D]; where a part has no keys its output is not looked at.
            lses: log-sum-exps [T, H], minus infinity where a part has no keys.

        Returns:
            (output [T, H, D], log-sum-exp [T, H]) over all keys.
        """
        lse_PTH = torch.stack(lses)
        lse_TH = lse_PTH.logsumexp(0)
        share_PTH = torch.where(lse_PTH == -torch.inf, 0.0, (lse_PTH - lse_TH).exp())
        out_THD = torch.zeros(outs[0].shape)
        for share_TH, part_THD in zip(share_PTH, outs, strict=True):
            out_THD += torch.where(share_TH[..., None] == 0, 0.0, share_TH[..., None] * part_THD.float())
        return out_THD.to(outs[0].dtype), lse_TH


def _padded(size: int) -> int:
    return -(-size // 16) * 16


def lanes_of(kv_BKXE: Tensor, size: int) -> int:
    """Tokens of a block of this pool."""
    lanes = kv_BKXE.shape[3] // (_padded(size) + (SCALE_BYTES if kv_BKXE.dtype == torch.int8 else 0))
    assert kv_BKXE.is_contiguous() and lanes in (1, LANES), "not a pool for heads of this size"  # noqa: PT018
    return lanes


def _views(kv_BKXE: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Keys [B, L, K, D / e, e] and values [B, L / p, p, K, D] as they lie in the pool."""
    lanes, pack = lanes_of(kv_BKXE, size), 4 // kv_BKXE.element_size()
    keys = kv_BKXE[:, :, 0, : size * lanes].unflatten(-1, (size // pack, lanes, pack))
    values, pair = kv_BKXE[:, :, 1, : _padded(size) * lanes], _pair(kv_BKXE, lanes)
    values = values.unflatten(-1, (lanes // pair, -1, pair))[..., :size, :]
    return keys.permute(0, 3, 1, 2, 4), values.permute(0, 2, 4, 1, 3)


def _pair(kv_BKXE: Tensor, lanes: int) -> int:
    """Tokens whose values lie beside each other, element by element."""
    return 2 if kv_BKXE.dtype == torch.bfloat16 and lanes > 1 else 1


def _scales(kv_BKXE: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Scales [B, L, K] of the keys and of the values as they lie in a pool of int8."""
    scales_BKXL = kv_BKXE[..., _padded(size) * lanes_of(kv_BKXE, size) :].view(torch.float32)
    return scales_BKXL[:, :, 0].transpose(1, 2), scales_BKXL[:, :, 1].transpose(1, 2)


def _rounded(x_TKD: Tensor) -> tuple[Tensor, Tensor]:
    """int8 [T, K, D] and scales [T, K]; what is not finite has a scale that is not a number."""
    x_TKD = x_TKD.float()
    most_TK = x_TKD.abs().amax(-1)
    finite_TK = most_TK.isfinite()
    sized = finite_TK & (most_TK >= torch.finfo(torch.float32).tiny)
    codes = (x_TKD * torch.where(sized, torch.tensor(127.0) / most_TK, 0.0)[..., None]).round()
    scales_TK = torch.where(finite_TK, most_TK / 127, torch.nan)
    return codes.where(sized[..., None], 0).to(torch.int8), scales_TK


def dense(x_THD: Tensor) -> Tensor:
    """The same with each token's heads side by side, though tokens may be apart."""
    return x_THD if x_THD.stride(2) == 1 and x_THD.stride(1) == x_THD.shape[2] else x_THD.contiguous()


def _chosen() -> Any:
    if choose().isa == "triton":  # under its interpreter
        from plait.kernels.triton.attention import Triton

        return Triton()
    return Native() if choose().native else Reference()


_OPS = _chosen()
BODIES = {name: getattr(_OPS, name) for name in (schema.partition("(")[0] for schema in SCHEMAS)}
"""Name of each op -> the function that carries it out."""
LIBRARY = register(SCHEMAS, BODIES)
"""Keeps the registration alive."""

paged_store = torch.ops.plait.paged_store.default
paged_attend = torch.ops.plait.paged_attend.default
paged_partial = torch.ops.plait.paged_partial.default
merge_attention = torch.ops.plait.merge_attention.default
