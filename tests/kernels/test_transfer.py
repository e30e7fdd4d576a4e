"""Keys and values go from pool to pool bit for bit, whatever pages, slots, heads and types."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.kernels import transfer
from plait.kernels.attention import Reference, empty_pool, pool_shape
from plait.kernels.choice import Choice, choose
from tests.scale import scaled

TYPES = [torch.float32, torch.bfloat16, torch.int8]


def pool(slots, kv_heads, size, page, dtype):
    """A pool of poison: bytes that no copy may leave behind."""
    kv = empty_pool(pool_shape(slots, kv_heads, size, page, dtype == torch.int8), dtype, torch.device("cpu"))
    kv.view(torch.uint8).fill_(0xA5)
    return kv


def slots_of(rng, page, tokens, slots):
    """Random pages for so many tokens, page by page in order."""
    pages = rng.permutation(slots // page)[: -(-tokens // page)]
    return np.concatenate([page * at + np.arange(page) for at in pages])[:tokens].astype(np.int32)


def read(kv, size, slots_T):
    """What lies in slots, by the torch path: the other way than the native one."""
    heads = kv.shape[1]
    wire = np.zeros(transfer.slots_bytes(kv, size, heads, len(slots_T)), np.uint8)
    transfer._copy_slots_in_torch(kv, size, slots_T, slice(0, heads), wire, True)
    return wire


@settings(max_examples=max(150, scaled(1500)), deadline=None)
@given(
    seed=st.integers(0, 2**32),
    pages=st.tuples(st.sampled_from([1, 4, 16, 32]), st.sampled_from([1, 4, 16, 32])),
    heads=st.integers(1, 4),
    size=st.sampled_from([8, 16, 24, 64]),
    dtype=st.sampled_from(TYPES),
    tokens=st.integers(1, 70),
    torch_at=st.sampled_from(["neither", "source", "target"]),
)
def test_slots_go_anywhere_bit_for_bit(seed, pages, heads, size, dtype, tokens, torch_at):
    rng = np.random.default_rng(seed)
    here, there = (pool(128, heads, size, page, dtype) for page in pages)
    from_T, to_T = (slots_of(rng, page, tokens, 128) for page in pages)
    k, v = (torch.from_numpy(rng.standard_normal((tokens, heads, size))).float() for _ in range(2))
    Reference().paged_store(k, v, torch.from_numpy(from_T), here)
    untouched = there.clone()
    cut = int(rng.integers(0, heads + 1))
    for first, past in ((0, cut), (cut, heads)):
        if first == past:
            continue
        wire = np.zeros(transfer.slots_bytes(here, size, past - first, tokens), np.uint8)
        for kv, slots_T, out in ((here, from_T, True), (there, to_T, False)):
            if torch_at == ("source" if out else "target"):
                transfer._copy_slots_in_torch(kv, size, slots_T, slice(first, past), wire, out)
            else:
                transfer.copy_slots(kv, size, slots_T, first, past - first, wire, out=out)
    assert np.array_equal(read(there, size, to_T), read(here, size, from_T))
    others = np.setdiff1d(np.arange(128), to_T).astype(np.int32)
    assert np.array_equal(read(there, size, others), read(untouched, size, others)), (
        "another slot was written"
    )


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("dtype", TYPES)
def test_blocks_go_as_they_lie(native, dtype, monkeypatch):
    if not native:
        monkeypatch.setattr(transfer, "choose", lambda: Choice(None, "reference", ""))
    rng = np.random.default_rng(1)
    here, there = (pool(128, 3, 24, 16, dtype) for _ in range(2))
    here.view(torch.uint8).copy_(torch.from_numpy(rng.integers(0, 256, here.view(torch.uint8).shape)))
    from_B, to_B = (rng.permutation(8)[:5].astype(np.int32) for _ in range(2))
    wire = np.zeros(5 * transfer.block_bytes(here, 2), np.uint8)
    transfer.copy_blocks(here, from_B, 1, 2, wire, out=True)
    transfer.copy_blocks(there, to_B, 1, 2, wire, out=False)
    got, wanted = (kv.view(torch.uint8)[at.tolist()][:, 1:3] for kv, at in ((there, to_B), (here, from_B)))
    assert torch.equal(got, wanted)
    assert (there.view(torch.uint8)[:, 0] == 0xA5).all()


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("count", [0, 7])
@pytest.mark.parametrize("dtype", TYPES)
def test_tokens_are_carried_between_pools(dtype, count, native, monkeypatch):
    if not native:
        monkeypatch.setattr(transfer, "choose", lambda: Choice(None, "reference", ""))
    rng, size = np.random.default_rng(4), 24
    here, there = (pool(128, 3, size, 16, dtype) for _ in range(2))
    here.view(torch.uint8).copy_(torch.from_numpy(rng.integers(0, 256, here.view(torch.uint8).shape)))
    untouched = there.clone()
    from_T, to_T = (rng.permutation(128)[:count].astype(np.int32) for _ in range(2))
    transfer.carry_slots(here, torch.from_numpy(from_T), there, torch.from_numpy(to_T), size)
    assert np.array_equal(read(there, size, to_T), read(here, size, from_T))
    others = np.setdiff1d(np.arange(128), to_T).astype(np.int32)
    assert np.array_equal(read(there, size, others), read(untouched, size, others))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_layout_of_gpus_has_the_same_form_on_the_way(dtype):
    rng = np.random.default_rng(2)
    here = torch.from_numpy(rng.standard_normal((8, 3, 2, 16, 24))).to(dtype)
    there = pool(128, 3, 24, 1, dtype)
    from_T, to_T = slots_of(rng, 16, 40, 128), slots_of(rng, 1, 40, 128)
    wire = np.zeros(transfer.slots_bytes(here, 24, 3, 40), np.uint8)
    transfer.copy_slots(here, 24, from_T, 0, 3, wire, out=True)
    transfer.copy_slots(there, 24, to_T, 0, 3, wire, out=False)
    back = torch.zeros_like(here)
    transfer.copy_slots(there, 24, to_T, 0, 3, wire, out=True)
    transfer.copy_slots(back, 24, from_T, 0, 3, wire, out=False)
    kept = back[from_T // 16, :, :, from_T % 16]
    assert torch.equal(kept, here[from_T // 16, :, :, from_T % 16])
    assert transfer.form_of(here, 24) != transfer.form_of(there, 24)


def test_checksums_agree_and_see_changes(monkeypatch):
    rng = np.random.default_rng(3)
    for length in (0, 1, 7, 8, 9, 1000, 4096):
        data = rng.integers(0, 256, length).astype(np.uint8)
        ours = transfer.checksum(data)
        if choose().native is not None:
            with monkeypatch.context() as patch:
                patch.setattr(transfer, "choose", lambda: Choice(None, "reference", ""))
                assert transfer.checksum(data) == ours
        if length > 16:
            changed, swapped = data.copy(), data.copy()
            changed[int(rng.integers(length))] ^= 1
            swapped[:8], swapped[8:16] = data[8:16], data[:8]
            assert transfer.checksum(changed) != ours
            assert transfer.checksum(swapped) != ours
