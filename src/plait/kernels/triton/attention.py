"""Attention on a GPU: the ops of `plait.kernels.attention`, launched with Triton.

Signatures and meaning are those of `plait.kernels.attention.Reference`; only the pool lies differently, see
`plait.kernels.triton.pool`. Nothing here waits for the GPU or looks at what its tensors hold, so that
every op can be captured in a graph.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from plait.kernels.triton.attend import merge_kernel, split_kernel, tile_kernel
from plait.kernels.triton.pool import launch_sizes, store_kernel

MOST_SPLITS = 32
PROGRAMS_PER_PROCESSOR = 4
"""Programs that splitting is to give each multiprocessor, so that one loads while another computes."""
INTERPRETED_PROCESSORS = 4
"""Stands for the number of multiprocessors where there is no GPU."""


@dataclass(frozen=True, slots=True)
class Tile:
    """How much a program takes at a time: keys and values of two stages fit 96 KB with the queries."""

    queries: int
    keys: int
    warps: int
    stages: int = 3

    def options(self) -> dict[str, int]:
        """For the launch."""
        return {"BLOCK_J": self.keys, "num_warps": self.warps, "num_stages": self.stages}


SPLIT_TILES = {256: Tile(16, 64, 4), 512: Tile(16, 32, 4), 1024: Tile(16, 16, 4)}
ROW_TILES = {256: Tile(128, 64, 8), 512: Tile(64, 32, 4), 1024: Tile(16, 16, 4)}
"""Bytes of a padded head, at most -> the tile."""


class Triton:
    """The ops; signatures are those of `plait.kernels.attention.Reference`."""

    def __init__(self, processors: int | None = None) -> None:
        """`processors`: multiprocessors to split decode attention over; None: those of the device."""
        self._processors = processors

    def paged_store(self, k_TKD: Tensor, v_TKD: Tensor, slots_T: Tensor, kv_BKXLD: Tensor) -> None:
        """Write the keys and values of new tokens into their slots."""
        assert slots_T.dtype == torch.int32, "slots are int32"
        tokens, heads, size = k_TKD.shape
        sizes = launch_sizes(kv_BKXLD, size)
        assert heads == sizes["KV_HEADS"], "keys do not fit the pool"
        if not tokens:
            return
        k_TKD, v_TKD = side_by_side(k_TKD), side_by_side(v_TKD)
        strides = (*k_TKD.stride()[:2], *v_TKD.stride()[:2])
        block = triton.next_power_of_2(size)
        store_kernel[(tokens, heads)](
            k_TKD, v_TKD, slots_T, kv_BKXLD, *strides, **sizes, BLOCK_D=block, num_warps=1
        )

    def paged_attend(
        self,
        q_THD: Tensor,
        kv_BKXLD: Tensor,
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
        """Causal attention over paged keys and values; see `Reference.paged_attend`.

        Where there are as many tokens as rows, all rows are taken as those of a decode step; a row of
        several tokens among them is computed correctly, but slowly.
        With a window, positions ascend within a row.
        """
        tokens, heads, size = q_THD.shape
        assert q_THD.dtype == kv_BKXLD.dtype, "queries and pool of one type"
        assert tables_RP.dtype == torch.int32 and tables_RP.stride(1) == 1, "tables are int32 rows"  # noqa: PT018
        assert positions_T.dtype == torch.int64, "positions are int64"
        out_THD = torch.empty((tokens, heads, size), dtype=q_THD.dtype, device=q_THD.device)
        lse_TH = torch.empty((tokens, heads), dtype=torch.float32, device=q_THD.device)
        if not tokens:
            return out_THD, lse_TH
        q_THD = side_by_side(q_THD)
        step = (tables_RP, rows_R, starts_R, lens_R, positions_T)
        fixed = {"PAGE": page, "WINDOW": window, "SOFTCAP": softcap, "HEADS": heads}
        fixed |= launch_sizes(kv_BKXLD, size) | {"BLOCK_D": padded(size)}
        mask = (first, stride, scale)
        rows = rows_R.shape[0]
        if tokens == rows or rows > 1:
            self._decode(q_THD, kv_BKXLD, step, mask, fixed, (out_THD, lse_TH))
        if tokens != rows:
            tile = ROW_TILES[_row_bytes(q_THD)]
            grid = (heads * (tokens // tile.queries + rows),)
            tile_kernel[grid](
                q_THD, kv_BKXLD, *step, out_THD, lse_TH, rows, *q_THD.stride()[:2], tables_RP.stride(0),
                *mask, **fixed, BLOCK_M=tile.queries, **tile.options(),
            )  # fmt: skip
        return out_THD, lse_TH

    def paged_partial(
        self,
        q_THD: Tensor,
        kv_BKXLD: Tensor,
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
        """Attention to a part of the keys, in float32; the kernels round it to the queries' type before."""
        step = (tables_RP, rows_R, starts_R, lens_R, positions_T, page, first, stride)
        out_THD, lse_TH = self.paged_attend(q_THD, kv_BKXLD, *step, scale, 0, softcap, threads)
        return out_THD.float(), lse_TH

    def _decode(
        self,
        q_THD: Tensor,
        kv_BKXLD: Tensor,
        step: tuple[Tensor, ...],
        mask: tuple[int, int, float],
        fixed: dict[str, Any],
        results: tuple[Tensor, Tensor],
    ) -> None:
        """Rows of one token: each row's keys in splits, and the splits joined."""
        tokens, heads, size = q_THD.shape
        tables_RP, rows, kv_heads = step[0], step[1].shape[0], fixed["KV_HEADS"]
        tile = SPLIT_TILES[_row_bytes(q_THD)]
        splits = self._splits(rows * kv_heads, tables_RP.shape[1] * fixed["PAGE"] // tile.keys, q_THD.device)
        every = tokens == rows
        out, lse = results
        if splits > 1:
            out = torch.empty((splits, rows, heads, size), dtype=torch.float32, device=q_THD.device)
            lse = torch.empty((splits, rows, heads), dtype=torch.float32, device=q_THD.device)
        split_kernel[(rows, kv_heads, splits)](
            q_THD, kv_BKXLD, *step, out, lse, *q_THD.stride()[:2], tables_RP.stride(0),
            rows * heads * size, rows * heads, *mask, EVERY=every, BY_TOKEN=every or splits == 1, **fixed,
            BLOCK_G=max(tile.queries, triton.next_power_of_2(heads // kv_heads)), **tile.options(),
        )  # fmt: skip
        if splits > 1:
            _merge(out, lse, step[2], *results, every)

    def merge_attention(self, outs: list[Tensor], lses: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Join attention over disjoint sets of keys; see `Reference.merge_attention`."""
        assert len({(out.shape, out.dtype) for out in outs}) == 1, "parts of one shape and type"
        assert len(outs) == len(lses) <= 64, "at most 64 parts, each with its log-sum-exp"
        out_THD = torch.empty_like(outs[0], memory_format=torch.contiguous_format)
        lse_TH = torch.empty_like(lses[0], memory_format=torch.contiguous_format)
        if lse_TH.numel():
            # Without `starts`, which only rows of a step have.
            _merge(torch.stack(outs), torch.stack(lses), lse_TH, out_THD, lse_TH, True)
        return out_THD, lse_TH

    def _splits(self, programs: int, blocks: int, device: torch.device) -> int:
        """Parts that make `programs` enough to fill the GPU; none without a block of keys of its own."""
        processors = self._processors
        if processors is None:
            processors = (
                torch.cuda.get_device_properties(device).multi_processor_count
                if device.type == "cuda"
                else INTERPRETED_PROCESSORS
            )
        wanted = -(-PROGRAMS_PER_PROCESSOR * processors // programs)
        return max(1, min(wanted, blocks, MOST_SPLITS))


def _merge(
    parts_SNHD: Tensor, lses_SNH: Tensor, starts_R: Tensor, out_THD: Tensor, lse_TH: Tensor, every: bool
) -> None:
    """N places: tokens if `every`, else rows, of which those of one token have a result."""
    parts, places, heads, size = parts_SNHD.shape
    merge_kernel[(places, heads)](
        parts_SNHD, lses_SNH, starts_R, out_THD, lse_TH, places * heads * size, places * heads,
        EVERY=every, PARTS=parts, HEADS=heads, SIZE=size,
        BLOCK_S=triton.next_power_of_2(parts), BLOCK_D=triton.next_power_of_2(size), num_warps=4,
    )  # fmt: skip


def side_by_side(x_THD: Tensor) -> Tensor:
    """The same with each head's elements side by side, though heads and tokens may be apart."""
    return x_THD if x_THD.stride(2) == 1 else x_THD.contiguous()


def padded(size: int) -> int:
    """Elements of a head as products take them: a power of two, at least 16."""
    return max(16, triton.next_power_of_2(size))


def _row_bytes(q_THD: Tensor) -> int:
    """Which tile: the padded head's bytes, rounded up to a key of the tables."""
    assert q_THD.dtype in (torch.float32, torch.bfloat16), f"no attention in {q_THD.dtype}"
    assert q_THD.shape[2] in range(8, 257, 8), f"head size {q_THD.shape[2]} is not a multiple of 8 up to 256"
    return max(256, padded(q_THD.shape[2]) * q_THD.element_size())
