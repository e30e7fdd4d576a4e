"""Attention kernels alone on a GPU, against what the same GPU reads and multiplies in the same run."""

from collections.abc import Callable, Iterator
from statistics import median

import gpu_limits as limits
import torch
from claim import Claim, reported
from torch import Tensor

from plait.kernels.attention import pool_shape
from plait.kernels.triton.attention import Triton

PAGE = 16
WARM, TURNS = 5, 20
FLUSH_BYTES = 1 << 30
"""KV rotates over this much at least, so that none of it waits in the caches."""


def seconds(work: Callable[[int], object], turns: int = TURNS) -> list[float]:
    """Times of `work(turn)`, one after another on the GPU, after a few that do not count."""
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(turns)]
    for turn in range(WARM):
        work(turn)
    for turn, (begin, end) in enumerate(marks):
        begin.record()
        work(turn)
        end.record()
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) / 1e3 for begin, end in marks]


def bandwidth() -> float:
    """Bytes a second that a copy reads and writes."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / median(seconds(lambda _: target.copy_(source)))


def matrix_rate() -> float:
    """FLOP a second of torch's product of two square bf16 matrices."""
    size = 8192
    a = torch.randn(size, size, dtype=torch.bfloat16, device="cuda")
    return 2 * size**3 / median(seconds(lambda _: a @ a))


def share(said: str, limit_s: float, times_s: list[float]) -> Claim:
    """The limit's share of each time."""
    shares = [limit_s / time_s for time_s in times_s]
    return reported(f"{said}, {median(times_s) * 1e3:.3f} ms", median(shares), (min(shares), max(shares)))


def decode_parts(quick: bool) -> Iterator[Claim]:
    """Share of the copy's bandwidth at which a decode step's attention reads its KV."""
    rate, room = bandwidth(), torch.cuda.mem_get_info()[0] // 2
    for rows, context in limits.decode_cases(quick, room):
        kv_bytes = limits.attention_kv_bytes(rows, context)
        copies = max(1, min(FLUSH_BYTES // kv_bytes, WARM + TURNS))
        work = decode_work(rows, context, copies)
        yield share(f"decode attention, {rows} x {context}", kv_bytes / rate, seconds(work))


def decode_work(rows: int, context: int, copies: int, device: str = "cuda") -> Callable[[int], object]:
    """Attention of one token a row over pages that lie anywhere; the turn says over which copy of them."""
    pages = -(-context // PAGE)
    slots = copies * rows * pages * PAGE
    shape = pool_shape(slots, limits.KV_HEADS, limits.HEAD_SIZE, PAGE, gpu=True)
    kv = torch.randn(shape, dtype=torch.bfloat16, device=device)
    tables = torch.randperm(copies * rows * pages, device=device).int().view(copies, rows, pages)
    counted = torch.arange(rows + 1, dtype=torch.int32, device=device)
    lens = torch.full((rows,), context, dtype=torch.int32, device=device)
    q = torch.randn(rows, limits.HEADS, limits.HEAD_SIZE, dtype=torch.bfloat16, device=device)
    step = (counted[:-1], counted, lens, lens.long() - 1)
    return lambda turn: attend(q, kv, tables[turn % copies], step)


def prefill_parts(quick: bool) -> Iterator[Claim]:
    """Share of the matrix rate at which a prompt's causal attention computes."""
    rate = matrix_rate()
    for tokens in limits.PREFILL_LENGTHS[1:2] if quick else limits.PREFILL_LENGTHS:
        work = prefill_work(tokens)
        yield share(f"prefill attention, {tokens} tokens", limits.prefill_flops(tokens) / rate, seconds(work))


def prefill_work(tokens: int, device: str = "cuda") -> Callable[[int], object]:
    """Attention of one prompt over itself."""
    pages = -(-tokens // PAGE)
    shape = pool_shape(pages * PAGE, limits.KV_HEADS, limits.HEAD_SIZE, PAGE, gpu=True)
    kv = torch.randn(shape, dtype=torch.bfloat16, device=device)
    tables = torch.randperm(pages, device=device).int()[None]
    q = torch.randn(tokens, limits.HEADS, limits.HEAD_SIZE, dtype=torch.bfloat16, device=device)
    ends = torch.tensor([0, tokens], dtype=torch.int32, device=device)
    step = (ends[:1], ends, ends[1:], torch.arange(tokens, device=device))
    return lambda _: attend(q, kv, tables, step)


def attend(q: Tensor, kv: Tensor, tables: Tensor, step: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Our op with a plain causal mask."""
    return Triton().paged_attend(q, kv, tables, *step, PAGE, 0, 1, limits.HEAD_SIZE**-0.5, 0, 0.0, 1)
