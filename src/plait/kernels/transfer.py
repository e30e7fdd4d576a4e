"""Keys and values out of a paged pool, and into another one: their form between two workers.

There are two forms, both for one layer and an interval of its heads:

    slots   [heads, 2, tokens, D] elements, keys then values; of int8, each [tokens, D] with its float32
            scales [tokens] behind it. Says nothing of the pool that it came from.
    blocks  whole blocks as they lie in the pool, [blocks, heads, 2, E]. For pools of one form only.

Native bodies release the interpreter lock, so a copy delays nobody but through memory.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plait.kernels import attention
from plait.kernels.choice import choose

Bytes = NDArray[np.uint8]


def form_of(kv: Tensor, size: int) -> str:
    """Pools whose forms are equal hold blocks that may be copied as they lie."""
    lanes = kv.shape[3] if kv.dim() == 5 else attention.lanes_of(kv, size)
    kind = "gpu" if kv.dim() == 5 else "cpu"
    return f"{kind} {str(kv.dtype).removeprefix('torch.')} {lanes}x{size}"


def slots_bytes(kv: Tensor, size: int, heads: int, tokens: int) -> int:
    """Bytes of `tokens` tokens of `heads` heads as slots."""
    scale_bytes = attention.SCALE_BYTES if kv.dtype == torch.int8 else 0
    return heads * 2 * tokens * (size * kv.element_size() + scale_bytes)


def block_bytes(kv: Tensor, heads: int) -> int:
    """Bytes of `heads` heads of a block."""
    return heads * kv[0, 0].numel() * kv.element_size()


def copy_slots(
    kv: Tensor, size: int, slots_T: NDArray[np.int32], first_head: int, heads: int, wire: Bytes, *, out: bool
) -> None:
    """Copy tokens from `kv` to `wire` (`out`) or back, in the form of slots.

    Args:
        kv: a layer's pool.
        size: elements of a head.
        slots_T: where the tokens lie.
        wire: exactly `slots_bytes` bytes.
    """
    assert len(wire) == slots_bytes(kv, size, heads, len(slots_T)), "not the bytes of so many tokens"
    native = _native(kv)
    if native is None:
        _copy_slots_in_torch(kv, size, slots_T, slice(first_head, first_head + heads), wire, out)
        return
    slots_T = np.ascontiguousarray(slots_T)
    native.move_slots(
        kv.data_ptr(),
        slots_T.ctypes.data,
        len(slots_T),
        kv.shape[1],
        first_head,
        heads,
        size,
        attention.lanes_of(kv, size),
        kv.element_size(),
        wire.ctypes.data,
        out,
    )


def carry_slots(source: Tensor, from_T: Tensor, target: Tensor, to_T: Tensor, size: int) -> None:
    """Copy tokens from one pool into another one of the same form.

    Args:
        from_T: int32 slots of `source`.
        to_T: as many slots of `target`.
        size: elements of a head.
    """
    assert form_of(source, size) == form_of(target, size), "pools of different forms"
    assert len(from_T) == len(to_T), "as many slots as tokens"
    native = _native(source)
    if native is None:
        wire = np.empty(slots_bytes(source, size, source.shape[1], len(from_T)), np.uint8)
        for kv, slots_T, out in ((source, from_T, True), (target, to_T, False)):
            _copy_slots_in_torch(kv, size, slots_T.cpu().numpy(), slice(0, kv.shape[1]), wire, out)
        return
    sizes = source.shape[1], size, attention.lanes_of(source, size), source.element_size()
    slots = from_T.data_ptr(), to_T.data_ptr()
    native.carry_slots(source.data_ptr(), slots[0], target.data_ptr(), slots[1], len(from_T), *sizes)


def copy_blocks(
    kv: Tensor, blocks_B: NDArray[np.int32], first_head: int, heads: int, wire: Bytes, *, out: bool
) -> None:
    """Copy blocks from `kv` to `wire` (`out`) or back, as they lie.

    Args:
        wire: `block_bytes` for each block.
    """
    run = block_bytes(kv, heads)
    assert len(wire) == run * len(blocks_B), "not the bytes of so many blocks"
    native = _native(kv)
    if native is None:
        picked = kv[:, first_head : first_head + heads].view(torch.uint8).flatten(1)
        at_B = torch.from_numpy(blocks_B).long().to(kv.device)
        if out:
            torch.from_numpy(wire).view(len(blocks_B), -1).copy_(picked[at_B])
        else:
            new = torch.from_numpy(wire.copy()).to(kv.device).view(kv.dtype)
            kv[at_B, first_head : first_head + heads] = new.view(len(blocks_B), heads, *kv.shape[2:])
        return
    blocks_B = np.ascontiguousarray(blocks_B)
    apart, offset = block_bytes(kv, kv.shape[1]), block_bytes(kv, first_head)
    native.move_blocks(
        kv.data_ptr(), blocks_B.ctypes.data, len(blocks_B), apart, offset, run, wire.ctypes.data, out
    )


def checksum(wire: Bytes) -> tuple[int, int]:
    """Fletcher's sums over words of 64 bits: the sum of all, and the sum of all sums so far. Any change of
    one word shows, and so does any exchange of two different ones."""
    native = choose().native
    if native is not None:
        sums: tuple[int, int] = native.aside.fletcher(wire.ctypes.data, len(wire))
        return sums
    words = np.zeros(-(-len(wire) // 8), np.uint64)
    words.view(np.uint8)[: len(wire)] = wire
    shares = np.arange(len(words), 0, -1, dtype=np.uint64)
    return int(words.sum(dtype=np.uint64)), int((words * shares).sum(dtype=np.uint64))


def _native(kv: Tensor) -> Any:
    """The compiled module where it can work on this pool."""
    native = choose().native
    return None if native is None or kv.device.type != "cpu" or kv.dim() == 5 else native.aside


def _copy_slots_in_torch(
    kv: Tensor, size: int, slots_T: NDArray[np.int32], heads: slice, wire: Bytes, out: bool
) -> None:
    tokens, count = len(slots_T), heads.stop - heads.start
    if not tokens:  # no bytes, and torch views none as another type
        return
    whole = torch.from_numpy(wire).view(count, 2, -1)
    split = tokens * size * kv.element_size()
    for index, (view, at) in enumerate(_views(kv, size, torch.from_numpy(slots_T).long().to(kv.device))):
        part, scales = index % 2, index > 1
        given = whole[:, part, split:] if scales else whole[:, part, :split]
        held = view[at]  # [T, K, ...]
        if out:
            new_KT = held[:, heads].transpose(0, 1).clone(memory_format=torch.contiguous_format)
            given.copy_(new_KT.flatten(1).view(torch.uint8))
        else:
            dense = given.clone(memory_format=torch.contiguous_format)
            new_KT = dense.view(torch.float32 if scales else kv.dtype)
            new_KT = new_KT.view(count, tokens, *held.shape[2:]).to(kv.device)
            held[:, heads] = new_KT.transpose(0, 1)
            view[at] = held


def _views(kv: Tensor, size: int, slots_T: Tensor) -> list[tuple[Tensor, tuple[Tensor, ...]]]:
    """Keys, values and, of int8, the scales of both: a view of the pool and where in it the tokens lie."""
    if kv.dim() == 5:
        at = slots_T // kv.shape[3], slots_T % kv.shape[3]
        return [(kv[:, :, part].transpose(1, 2), at) for part in (0, 1)]
    keys_BLKD, values_BLPKD = attention._views(kv, size)
    lanes, pair = keys_BLKD.shape[1], values_BLPKD.shape[2]
    block_T, lane_T = slots_T // lanes, slots_T % lanes
    found = [(keys_BLKD, (block_T, lane_T)), (values_BLPKD, (block_T, lane_T // pair, lane_T % pair))]
    if kv.dtype == torch.int8:
        found += [(scales_BLK, (block_T, lane_T)) for scales_BLK in attention._scales(kv, size)]
    return found
