"""Compiles every Triton kernel for a GPU that need not be here, as the ops launch it: needs no driver.

    python compile_triton.py 90

Prints one line a kernel: its shared memory in bytes. Exit status 1: something did not compile.
"""

import sys
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from plait.kernels.attention import pool_shape
from plait.kernels.triton import attend, pointwise, pool
from plait.kernels.triton.attention import Triton as Attention

KERNELS = (
    attend.split_kernel, attend.merge_kernel, attend.tile_kernel, pool.store_kernel,
    pointwise.norm_kernel, pointwise.gate_kernel, pointwise.rope_kernel,
)  # fmt: skip
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int32: "*i32", torch.int64: "*i64"}
Launch = tuple[Any, tuple[Any, ...], dict[str, Any]]


def launches(dtype: torch.dtype, heads: tuple[int, int], size: int, page: int, capped: bool) -> list[Launch]:
    """What one model's shapes launch: prefill, decode with and without splits, a mixture, and the rest."""
    found: list[Launch] = []
    for kernel in KERNELS:
        kernel.run = lambda *args, grid, warmup, kernel=kernel, **named: found.append((kernel, args, named))
    query_heads, kv_heads = heads
    kv = torch.empty(pool_shape(1024, kv_heads, size, page, gpu=True), dtype=dtype)
    mask = (page, 0, 1, size**-0.5, 4096 if capped else 0, 50.0 if capped else 0.0, 1)
    for counts in ([1] * 4, [300, 1, 5], [1] * 512):
        rows, tokens = len(counts), sum(counts)
        ends = torch.tensor([0, *counts]).cumsum(0).int()
        step = (torch.zeros(rows, 64).int(), ends[:rows], ends, ends[:rows], torch.zeros(tokens).long())
        Attention(132).paged_attend(torch.empty(tokens, query_heads, size, dtype=dtype), kv, *step, *mask)
    q, k = (torch.empty(4, count, size, dtype=dtype) for count in heads)
    slots, ops = torch.arange(4).int(), pointwise.Triton()
    Attention().paged_store(k, k, slots, kv)
    for rotated in (size, size // 2):
        angles = torch.empty(4, rotated, dtype=dtype)
        ops.rope_store(q, k, k, angles, angles, slots, kv, 1)
    x = torch.empty(4, 4096, dtype=dtype)
    ops.rms_norm(x, x[0], 0.0, 1e-5, 1)
    ops.add_rms_norm(x, x.clone(), x[0], 0.0, 1e-5, 1)
    ops.silu_mul(x, x, 1)
    return found


def compiled(launch: Launch, capability: int) -> Any:
    """Types, constants and alignments as Triton itself derives them from the arguments of a launch."""
    kernel, args, named = launch
    given = dict(zip(kernel.arg_names, args, strict=False)) | named
    options = {name: value for name, value in named.items() if name not in kernel.arg_names}
    types: dict[str, str] = {}
    constants: dict[tuple[int], Any] = {}
    aligned: dict[tuple[int], Any] = {}
    for i, parameter in enumerate(kernel.params):
        value = given[parameter.name]
        fixed = parameter.is_constexpr or (
            type(value) is int and value == 1 and not parameter.do_not_specialize
        )
        if fixed:
            types[parameter.name], constants[(i,)] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            types[parameter.name], aligned[(i,)] = POINTERS[value.dtype], [["tt.divisibility", 16]]
        else:
            types[parameter.name] = "fp32" if isinstance(value, float) else "i32"
            if isinstance(value, int) and value % 16 == 0 and not parameter.do_not_specialize:
                aligned[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, types, constants, aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def main() -> None:
    """Compile for the capability that was named, such as 90."""
    capability = int(sys.argv[1])
    for shapes in (
        (torch.bfloat16, (32, 8), 128, 16, False),
        (torch.bfloat16, (8, 4), 256, 16, True),
        (torch.float32, (9, 3), 64, 1, False),
    ):
        for launch in launches(*shapes):
            binary = compiled(launch, capability)
            print(launch[0].__name__, binary.metadata.shared)


if __name__ == "__main__":
    main()
