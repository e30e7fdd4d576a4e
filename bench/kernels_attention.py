"""Decode attention against the read bandwidth of the same run, and prefill attention in GFLOP/s a core.

Bandwidth moves on shared machines, so every repetition times a plain read of the same bytes next to the
kernel, and the ratio's median counts. Keys and values rotate over more memory than any cache holds.
"""

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import claim
import torch
import torch.nn.functional as F
from torch import Tensor

from plait.kernels import attention
from plait.kernels.choice import choose

HEADS, KV_HEADS, SIZE = 9, 3, 64
"""SmolLM2-135M's attention."""
THREADS = 2
BYTES_TOKEN = 2 * KV_HEADS * SIZE * 2


@dataclass(frozen=True)
class Batch:
    """One decode batch whose keys and values rotate over several pools."""

    rows: int
    keys: int
    """Keys of each row."""
    page: int
    """Slots of a page; 1 for arbitrary slots."""
    scattered: bool
    """Pages (or slots) in random order, else one after another."""
    bytes: int
    """Over all pools together, at least."""

    @property
    def name(self) -> str:
        """For the table."""
        kind = "random" if self.scattered else "contiguous"
        return f"{self.rows} x {self.keys:,}, {kind} {'pages' if self.page > 1 else 'slots'}"


def calls(batch: Batch, seed: int) -> tuple[list[Callable[[], None]], list[Tensor]]:
    """One call for each pool, and the pools."""
    rng, pages = random.Random(seed), batch.rows * batch.keys // batch.page
    slots = batch.rows * batch.keys
    order = list(range(pages))
    if batch.scattered:
        rng.shuffle(order)
    tables_RP = torch.tensor(order, dtype=torch.int32).view(batch.rows, -1)
    q_THD = torch.randn(batch.rows, HEADS, SIZE).bfloat16()
    shape = attention.pool_shape(slots, KV_HEADS, SIZE, batch.page)
    count = -(-batch.bytes // (slots * BYTES_TOKEN))
    whole = attention.empty_pool((count * shape[0], *shape[1:]), torch.bfloat16, torch.device("cpu"))
    whole.normal_()
    rows_R = torch.arange(batch.rows, dtype=torch.int32)
    starts_R = torch.arange(batch.rows + 1, dtype=torch.int32)
    lens_R = torch.full((batch.rows,), batch.keys, dtype=torch.int32)
    at_T = torch.full((batch.rows,), batch.keys - 1)
    step = (tables_RP, rows_R, starts_R, lens_R, at_T, batch.page, 0, 1, SIZE**-0.5, 0, 0.0, THREADS)
    pools = list(whole.view(count, *shape))
    return [lambda kv=kv: attention.paged_attend(q_THD, kv, *step) for kv in pools], pools


def seconds(all_calls: list[Callable[[], None]]) -> float:
    """Mean seconds of one call."""
    start = time.perf_counter()
    for call in all_calls:
        call()
    return (time.perf_counter() - start) / len(all_calls)


def read_seconds(pools: list[Tensor]) -> float:
    """Seconds to read one pool once, over all of them: the bandwidth that the kernel is held against."""
    choice = choose()
    start = time.perf_counter()
    for kv in pools:
        choice.native.read(choice.isa, kv.data_ptr(), kv.nbytes, THREADS)
    return (time.perf_counter() - start) / len(pools)


def decode_share(batch: Batch, seed: int, repeats: int) -> tuple[float, float, float]:
    """Median share of the bandwidth that the kernel reaches, with the lowest and highest."""
    kernel, pools = calls(batch, seed)
    shares = []
    for _ in range(repeats + 1):
        reading = read_seconds(pools)
        shares.append(reading / seconds(kernel))
    return statistics.median(shares[1:]), min(shares[1:]), max(shares[1:])


def torch_speedup(batch: Batch, seed: int, repeats: int) -> float:
    """How many times faster than torch's attention with one or two threads, whichever is faster."""
    kernel, pools = calls(batch, seed)
    q = torch.randn(batch.rows, HEADS, 1, SIZE).bfloat16()
    parts = [kv.view(2, batch.rows, KV_HEADS, batch.keys, SIZE) for kv in pools]

    def theirs(kv: Tensor) -> None:
        F.scaled_dot_product_attention(q, kv[0], kv[1], enable_gqa=True)

    their_calls = [lambda kv=kv: theirs(kv) for kv in parts]
    ratios, before = [], torch.get_num_threads()
    for _ in range(repeats + 1):
        found = []
        for threads in (2, 1):  # one thread last: torch's others spin for a while after their work
            torch.set_num_threads(threads)
            found.append(seconds(their_calls))
        ratios.append(min(found) / seconds(kernel))
    torch.set_num_threads(before)
    return statistics.median(ratios[1:])


def prefill_rate(tokens: int, dtype: torch.dtype, repeats: int) -> float:
    """GFLOP/s on one core over the products that the causal mask leaves."""
    q, k, v = (torch.randn(tokens, heads, SIZE).to(dtype) for heads in (HEADS, KV_HEADS, KV_HEADS))
    kv = torch.zeros(attention.pool_shape(tokens, KV_HEADS, SIZE, 16), dtype=dtype)
    attention.paged_store(k, v, torch.arange(tokens, dtype=torch.int32), kv)
    row = [torch.tensor(x, dtype=torch.int32) for x in ([0], [0, tokens], [tokens])]
    table = torch.arange(tokens // 16, dtype=torch.int32)[None]
    at_T = torch.arange(tokens)
    flops = 4 * SIZE * HEADS * tokens * (tokens + 1) / 2
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        attention.paged_attend(q, kv, table, *row, at_T, 16, 0, 1, SIZE**-0.5, 0, 0.0, 1)
        times.append(time.perf_counter() - start)
    return flops / statistics.median(times[1:]) / 1e9


def parts(quick: bool, seed: int = 0) -> list[claim.Claim]:
    """The attention lines of the kernels' claim."""
    repeats, much = (5, 200 << 20) if quick else (15, 256 << 20)
    torch.manual_seed(seed)
    found = []
    for batch, bar in (
        (Batch(8, 4096, 16, False, much), 0.55),
        (Batch(8, 4096, 16, True, much), 0.45),
        (Batch(16, 192, 16, True, 60 << 20), 0.35),
        (Batch(8, 4096, 1, True, much), 0.15),
    ):
        share, least, most = decode_share(batch, seed, repeats)
        words = f"decode, {batch.name}: share of read bandwidth"
        found.append(claim.Claim(words, share, bar, share >= bar, (least, most)))
    for batch in (Batch(8, 4096, 16, True, much), Batch(16, 192, 16, True, 60 << 20)):
        ratio = torch_speedup(batch, seed, 2 if quick else 5)
        found.append(claim.at_least(f"decode, {batch.name}: times faster than torch", ratio, 12))
    rate = prefill_rate(1024, torch.bfloat16, 5 * repeats)
    found.append(claim.at_least("prefill, 1,024 tokens, bf16: GFLOP/s a core", rate, 100))
    rate = prefill_rate(1024, torch.float32, 5 * repeats)
    found.append(claim.reported("prefill, 1,024 tokens, float32: GFLOP/s a core", rate, (rate, rate)))
    return found


if __name__ == "__main__":
    options = claim.arguments(__doc__)
    held = claim.together("attention kernels near the machine's limits", parts(options.quick, options.seed))
    claim.finish("kernels_attention", held, options)
