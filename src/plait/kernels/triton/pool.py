"""The pool of a layer on a GPU: where keys and values lie, and the kernel that writes them.

kv_BKXLD: B blocks of L tokens, K heads, X keys then values. A head's 16 tokens are one run of memory, and
a warp reads a token's D elements side by side. Offsets are 64 bits wide: pools pass 2^31 elements.
"""

import triton
import triton.language as tl
from torch import Tensor


def launch_sizes(kv_BKXLD: Tensor, size: int) -> dict[str, int]:
    """What kernels must know of a pool when they are compiled."""
    assert kv_BKXLD.dim() == 5 and kv_BKXLD.is_contiguous(), "not a pool in the layout of GPUs"  # noqa: PT018
    assert kv_BKXLD.shape[4] == size, "not a pool for heads of this size"
    return {"KV_HEADS": kv_BKXLD.shape[1], "LANES": kv_BKXLD.shape[3], "SIZE": size}


@triton.jit
def pool_offset(slot, head, part, KV_HEADS: tl.constexpr, LANES: tl.constexpr, SIZE: tl.constexpr):
    """Where the key (part 0) or value (part 1) of a slot begins, in elements."""
    block = (slot // LANES).to(tl.int64)
    return (((block * KV_HEADS + head) * 2 + part) * LANES + slot % LANES) * SIZE


@triton.jit
def store_kernel(
    k, v, slots, kv, k_stride, k_head_stride, v_stride, v_head_stride,
    KV_HEADS: tl.constexpr, LANES: tl.constexpr, SIZE: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program a token and head."""
    t, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = tl.load(slots + t)
    at_D = tl.arange(0, BLOCK_D)
    inside_D = at_D < SIZE
    k_D = tl.load(k + t * k_stride + head * k_head_stride + at_D, mask=inside_D)
    v_D = tl.load(v + t * v_stride + head * v_head_stride + at_D, mask=inside_D)
    to_keys = kv + pool_offset(slot, head, 0, KV_HEADS, LANES, SIZE)
    to_values = kv + pool_offset(slot, head, 1, KV_HEADS, LANES, SIZE)
    tl.store(to_keys + at_D, k_D.to(kv.dtype.element_ty), mask=inside_D)
    tl.store(to_values + at_D, v_D.to(kv.dtype.element_ty), mask=inside_D)
