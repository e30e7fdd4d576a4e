"""The attention kernels: split over keys for rows of one token, tiles of queries for the others.

Both go over keys with `over_keys`. A step's rows of one token are computed by `split_kernel`, whose splits
`merge_kernel` joins; rows of several by `tile_kernel`. Which row is which only the GPU knows: each kernel
passes over the rows of the other.

Legend: G query heads of one key-value head, M queries of a tile, J keys of a block, D head size, S splits.
"""

import triton
import triton.language as tl
from triton import knobs

from plait.kernels.triton.pool import pool_offset

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
INTERPRETED = tl.constexpr(bool(knobs.runtime.interpret))
"""The interpreter multiplies the bits of bf16 numbers as integers: there they are widened first."""


@triton.jit
def product(a, b, sum_MN):
    """`a @ b + sum` with exact products and sums in float32."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc=sum_MN, input_precision="ieee")


@triton.jit
def visible(position, first, stride, length, WINDOW: tl.constexpr):
    """The keys [begin, end) that a query sees."""
    ahead = position - first
    # Quotients of negative numbers are never used: the GPU and its interpreter round them differently.
    end = tl.minimum(tl.where(ahead < 0, 0, ahead // stride + 1), length)
    begin = tl.zeros_like(end)
    if WINDOW:
        hidden = ahead - WINDOW
        begin = tl.where(hidden < 0, 0, hidden // stride + 1)
    return begin.to(tl.int32), end.to(tl.int32)


@triton.jit
def capped(score, SOFTCAP: tl.constexpr):
    """`SOFTCAP * tanh(score / SOFTCAP)`."""
    small = tl.exp2(tl.abs(score) * (-2 * LOG2E / SOFTCAP))
    size = SOFTCAP * (1 - small) / (1 + small)
    return tl.where(score < 0, -size, size)


@triton.jit
def over_keys(
    q_MD, begin_M, end_M, begin, end, head, table, kv, scale,
    PAGE: tl.constexpr, SOFTCAP: tl.constexpr, KV_HEADS: tl.constexpr, LANES: tl.constexpr,
    SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """(output [M, D], log-sum-exp [M]) over keys [begin, end), of which query m sees [begin_m, end_m)."""
    at_D, at_J = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_J)
    sum_MD = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    sum_M = tl.zeros([BLOCK_M], tl.float32)
    most_M = tl.full([BLOCK_M], float("-inf"), tl.float32)
    for start in range(begin, end, BLOCK_J):
        j_J = start + at_J
        known_J = j_J < end
        slot_J = tl.load(table + j_J // PAGE, mask=known_J, other=0) * PAGE + j_J % PAGE
        known_JD = known_J[:, None] & (at_D < SIZE)[None, :]
        at_JD = pool_offset(slot_J, head, 0, KV_HEADS, LANES, SIZE)[:, None] + at_D[None, :]
        k_JD = tl.load(kv + at_JD, mask=known_JD, other=0.0)
        v_JD = tl.load(kv + at_JD + LANES * SIZE, mask=known_JD, other=0.0)
        score_MJ = product(q_MD, tl.trans(k_JD), tl.zeros([BLOCK_M, BLOCK_J], tl.float32)) * scale
        if SOFTCAP > 0:
            score_MJ = capped(score_MJ, SOFTCAP)
        seen_MJ = (j_J[None, :] >= begin_M[:, None]) & (j_J[None, :] < end_M[:, None]) & known_J[None, :]
        score_MJ = tl.where(seen_MJ, score_MJ * LOG2E, float("-inf"))
        higher_M = tl.maximum(most_M, tl.max(score_MJ, 1))
        # A query that has seen no key yet: minus infinity less itself would be no number.
        base_M = tl.where(higher_M == float("-inf"), 0.0, higher_M)
        weight_MJ = tl.exp2(score_MJ - base_M[:, None])
        fade_M = tl.exp2(most_M - base_M)
        sum_M = sum_M * fade_M + tl.sum(weight_MJ, 1)
        sum_MD = product(weight_MJ.to(v_JD.dtype), v_JD, sum_MD * fade_M[:, None])
        most_M = higher_M
    some_M = sum_M > 0
    sum_M = tl.where(some_M, sum_M, 1.0)
    lse_M = tl.where(some_M, (most_M + tl.log2(sum_M)) * LN2, float("-inf"))
    return sum_MD / sum_M[:, None], lse_M


@triton.jit
def split_kernel(
    q, kv, tables, rows, starts, lens, positions, out, lse, q_stride, q_head_stride, table_stride,
    out_stride, lse_stride, first, stride, scale,
    EVERY: tl.constexpr, BY_TOKEN: tl.constexpr, PAGE: tl.constexpr, WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, LANES: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program a row, key-value head and split: all query heads of that head, over its part of the keys.

    EVERY: rows of any number of tokens, one after another; else only those of one token.
    BY_TOKEN: results lie in the place of their token; else in that of their row.
    """
    r, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    from_token, to_token = tl.load(starts + r), tl.load(starts + r + 1)
    if not EVERY:
        to_token = tl.where(to_token - from_token == 1, to_token, from_token)
    table = tables + tl.load(rows + r).to(tl.int64) * table_stride
    length = tl.load(lens + r)
    at_G, at_D = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_D)
    head_G = head * (HEADS // KV_HEADS) + at_G
    inside_G = at_G < HEADS // KV_HEADS
    inside_GD = inside_G[:, None] & (at_D < SIZE)[None, :]
    for i in range(to_token - from_token):
        t = from_token + i
        from_q = q + t.to(tl.int64) * q_stride
        q_GD = tl.load(from_q + head_G[:, None] * q_head_stride + at_D[None, :], mask=inside_GD, other=0.0)
        begin, end = visible(tl.load(positions + t), first, stride, length, WINDOW)
        blocks = tl.cdiv(tl.maximum(end - begin, 0), BLOCK_J)
        share = tl.cdiv(blocks, tl.num_programs(2)) * BLOCK_J
        begin += split * share
        end = tl.minimum(begin + share, end)
        begin_G = tl.zeros([BLOCK_G], tl.int32) + begin
        end_G = tl.zeros([BLOCK_G], tl.int32) + end
        out_GD, lse_G = over_keys(
            q_GD, begin_G, end_G, begin, end, head, table, kv, scale,
            PAGE, SOFTCAP, KV_HEADS, LANES, SIZE, BLOCK_G, BLOCK_J, BLOCK_D,
        )  # fmt: skip
        place = r
        if BY_TOKEN:
            place = t
        at_G_out = place.to(tl.int64) * HEADS + head_G
        to_out = out + split.to(tl.int64) * out_stride + at_G_out[:, None] * SIZE + at_D[None, :]
        tl.store(to_out, out_GD.to(out.dtype.element_ty), mask=inside_GD)
        tl.store(lse + split.to(tl.int64) * lse_stride + at_G_out, lse_G, mask=inside_G)


@triton.jit
def merge_kernel(
    parts, part_lses, starts, out, lse, part_stride, lse_stride,
    EVERY: tl.constexpr, PARTS: tl.constexpr, HEADS: tl.constexpr, SIZE: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program a place and query head: joins PARTS outputs, each with its log-sum-exp.

    EVERY: a place is a token; else it is a row, and only rows of one token have a result.
    """
    place, head = tl.program_id(0), tl.program_id(1)
    to_token, known, width = place, PARTS, SIZE
    if not EVERY:
        to_token = tl.load(starts + place)
        tokens = tl.load(starts + place + 1) - to_token
        known = tl.where(tokens == 1, PARTS, 0)
        width = tl.where(tokens == 1, SIZE, 0)
    at_S, at_D = tl.arange(0, BLOCK_S).to(tl.int64), tl.arange(0, BLOCK_D)
    from_place = place.to(tl.int64) * HEADS + head
    known_S = at_S < known
    lse_S = tl.load(part_lses + at_S * lse_stride + from_place, mask=known_S, other=float("-inf"))
    most = tl.max(lse_S, 0)
    base = tl.where(most == float("-inf"), 0.0, most)
    weight_S = tl.exp2((lse_S - base) * LOG2E)
    total = tl.sum(weight_S, 0)
    # Outputs of parts without keys are not looked at: they may hold anything.
    used_SD = (lse_S > float("-inf"))[:, None] & (at_D < SIZE)[None, :]
    from_part = parts + at_S[:, None] * part_stride + from_place * SIZE + at_D[None, :]
    part_SD = tl.load(from_part, mask=used_SD, other=0.0).to(tl.float32)
    some = tl.where(total > 0, total, 1.0)
    out_D = tl.sum(part_SD * weight_S[:, None], 0) / some
    to_place = to_token.to(tl.int64) * HEADS + head
    tl.store(out + to_place * SIZE + at_D, out_D.to(out.dtype.element_ty), mask=at_D < width)
    tl.store(lse + to_place, tl.where(total > 0, base + tl.log2(some) * LN2, float("-inf")), mask=width > 0)


@triton.jit(do_not_specialize=["count"])
def tile_kernel(
    q, kv, tables, rows, starts, lens, positions, out, lse, count, q_stride, q_head_stride, table_stride,
    first, stride, scale,
    PAGE: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr, LANES: tl.constexpr, SIZE: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program a query head and tile of up to M tokens of one of `count` rows; rows of one token: none.

    Row r's tiles begin at number `starts[r] // M + r`: no row's tiles reach the next row's, and T // M + R
    programs for each head are enough whatever the rows' lengths.
    """
    head, tile = tl.program_id(0) % HEADS, tl.program_id(0) // HEADS
    r = tile * 0
    past = r + count
    while past - r > 1:
        middle = (r + past) // 2
        fits = tl.load(starts + middle) // BLOCK_M + middle <= tile
        r = tl.where(fits, middle, r)
        past = tl.where(fits, past, middle)
    from_token, to_token = tl.load(starts + r), tl.load(starts + r + 1)
    to_token = tl.where(to_token - from_token > 1, to_token, from_token)
    from_tile = from_token + (tile - (from_token // BLOCK_M + r)) * BLOCK_M
    t_M = from_tile + tl.arange(0, BLOCK_M)
    inside_M = t_M < to_token
    at_D = tl.arange(0, BLOCK_D)
    inside_MD = inside_M[:, None] & (at_D < SIZE)[None, :]
    from_q = q + t_M.to(tl.int64)[:, None] * q_stride + head * q_head_stride + at_D[None, :]
    q_MD = tl.load(from_q, mask=inside_MD, other=0.0)
    position_M = tl.load(positions + t_M, mask=inside_M, other=0)
    begin_M, end_M = visible(position_M, first, stride, tl.load(lens + r), WINDOW)
    end_M = tl.where(inside_M, end_M, 0)
    end = tl.max(end_M, 0)
    begin = 0
    if WINDOW:
        # A row's positions ascend. (With a minimum over the tile the compiler no longer loads ahead.)
        least = tl.load(positions + from_tile, mask=from_tile < to_token, other=0)
        begin, _ = visible(least, first, stride, end, WINDOW)
    table = tables + tl.load(rows + r).to(tl.int64) * table_stride
    out_MD, lse_M = over_keys(
        q_MD, begin_M, end_M, begin, end, head // (HEADS // KV_HEADS), table, kv, scale,
        PAGE, SOFTCAP, KV_HEADS, LANES, SIZE, BLOCK_M, BLOCK_J, BLOCK_D,
    )  # fmt: skip
    at_M = t_M.to(tl.int64) * HEADS + head
    tl.store(out + at_M[:, None] * SIZE + at_D[None, :], out_MD.to(out.dtype.element_ty), mask=inside_MD)
    tl.store(lse + at_M, lse_M, mask=inside_M)
