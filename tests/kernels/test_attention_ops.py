"""Paged attention of every instruction set against the torch reference, on poisoned memory."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.kernels import attention
from plait.kernels.attention import Native, Reference
from plait.kernels.choice import choose

REFERENCE = Reference()
ISAS = choose().native.isas() if choose().native else []
needs_native = pytest.mark.skipif(not ISAS, reason="no native kernels")
MOST_KEYS = 600


def poisoned(slots, kv_heads, size, page, dtype):
    """A pool without any number in it, or of int8 with scales that are none."""
    if dtype != torch.int8:
        return torch.full(attention.pool_shape(slots, kv_heads, size, page), torch.nan, dtype=dtype)
    kv = torch.full(attention.pool_shape(slots, kv_heads, size, page, scaled=True), -128, dtype=torch.int8)
    for scales in attention._scales(kv, size):
        scales.fill_(torch.nan)
    return kv


@st.composite
def attentions(draw, longest=(20, 150, MOST_KEYS), rounded=True):
    """Arguments of `paged_attend`: prefixes, chunks and decodes, striped keys, some rows without any key."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    page = draw(st.sampled_from([1, 4, 16, 32]))
    kv_heads, share = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 2, 3, 7, 9]))
    size = draw(st.sampled_from([8, 16, 24, 64, 80, 128, 256]))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    longest = draw(st.sampled_from(longest))
    first, stride = draw(st.sampled_from([(0, 1), (0, 1), (1, 3), (5, 2)]))
    rows = draw(st.integers(1, 5))
    lens = rng.integers(0, longest, rows)
    counts = [int(rng.integers(0, min(n, 40) + 1)) if n else 1 for n in lens]
    tables, pages = rows + 2, -(-longest // page)
    slots = -(-tables * pages * page // 16) * 16
    order = torch.from_numpy(rng.permutation(slots // page)[: tables * pages]).int().view(tables, pages)
    rows_R = torch.from_numpy(rng.permutation(tables)[:rows]).int()
    kept = draw(st.sampled_from([dtype, torch.int8] if rounded else [dtype]))
    kv = poisoned(slots, kv_heads, size, page, kept)
    for r, n in enumerate(lens):
        at = torch.arange(int(n))
        used = order[rows_R[r].long(), at // page] * page + at % page
        k, v = (torch.from_numpy(rng.standard_normal((n, kv_heads, size))).to(dtype) for _ in range(2))
        REFERENCE.paged_store(k, v, used.int(), kv)
    heads, tokens = kv_heads * share, sum(counts)
    ends = [first + stride * int(n) for n in lens]
    positions = np.concatenate([np.arange(e - c, e) for e, c in zip(ends, counts, strict=True)])
    # Queries come as slices of a wider buffer, as those of a product for several layers do.
    wide = torch.from_numpy(rng.standard_normal((tokens, heads + kv_heads, size))).to(dtype)
    starts = torch.tensor([0, *np.cumsum(counts)], dtype=torch.int32)
    window, softcap = draw(st.sampled_from([0, 0, 1, 7, 64, 300])), draw(st.sampled_from([0.0, 5.0]))
    table = (order, rows_R, starts, torch.from_numpy(lens).int(), torch.from_numpy(positions))
    return (wide[:, :heads], kv, *table, page, first, stride, size**-0.5, window, softcap)


def close(got, want, dtype):
    """Within 1e-6 of the largest value: both sum float32 products, in different orders."""
    slack = 2e-6 if dtype == torch.float32 else 1e-2
    size = max(1.0, float(want.float().nan_to_num(neginf=0).abs().max())) if want.numel() else 1.0
    torch.testing.assert_close(got.float(), want.float(), rtol=slack, atol=slack * size)


@needs_native
@settings(max_examples=100, deadline=None)
@given(attentions(), st.sampled_from(ISAS or [""]))
def test_attention_equals_the_reference(arguments, isa):
    native = Native(isa)
    one, lse = native.paged_attend(*arguments, 1)
    two, lse_two = native.paged_attend(*arguments, 2)
    want, want_lse = REFERENCE.paged_attend(*arguments, 1)
    assert torch.equal(one, two)
    assert torch.equal(lse, lse_two)
    close(one, want, one.dtype)
    close(lse, want_lse, torch.float32)


@settings(max_examples=60, deadline=None)
@given(attentions(), st.data())
def test_a_query_does_not_see_its_batch(arguments, data):
    """Each token computed alone gives the same bits as among all others."""
    q_THD, kv, tables, rows, starts, lens, positions, *rest = arguments
    whole, lse = attention.paged_attend(*arguments, 2)
    r = data.draw(st.integers(0, len(rows) - 1))
    if starts[r + 1] == starts[r]:
        return
    t = data.draw(st.integers(int(starts[r]), int(starts[r + 1]) - 1))
    one = torch.tensor([0, 1], dtype=torch.int32)
    # Cut off what comes after: a chunk that ends here has no later keys.
    first, stride = rest[1:3]
    known = torch.minimum(lens[r], (positions[t] - first) // stride + 1).clamp(min=0).int()[None]
    table = (tables, rows[r : r + 1], one, known, positions[t : t + 1].clone())
    alone, alone_lse = attention.paged_attend(q_THD[t : t + 1].clone(), kv, *table, *rest, 1)
    assert torch.equal(alone[0], whole[t])
    assert torch.equal(alone_lse[0], lse[t])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([torch.float32, torch.bfloat16]), st.booleans())
def test_pages_change_no_bit(seed, dtype, rounded):
    """The same keys as packed pages and as scattered tokens."""
    torch.manual_seed(seed)
    keys, heads, size = int(torch.randint(1, 400, ())), 2, 32
    q, k, v = (torch.randn(n, heads, size).to(dtype) for n in (1, keys, keys))
    found = []
    for page in (1, 16):
        pages = -(-keys // page)
        table = torch.randperm(2 * pages)[:pages].int()[None]
        kv = poisoned(2 * pages * page, heads, size, page, torch.int8 if rounded else dtype)
        at = torch.arange(keys)
        attention.paged_store(k, v, (table[0, at // page] * page + at % page).int(), kv)
        row = (torch.tensor([0]).int(), torch.tensor([0, 1]).int(), torch.tensor([keys]).int())
        at_end = torch.tensor([keys - 1])
        found.append(attention.paged_attend(q, kv, table, *row, at_end, page, 0, 1, 0.2, 0, 0.0, 1))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@needs_native
@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 20), st.integers(0, 2**32), st.sampled_from([torch.float32, torch.bfloat16]),
    st.sampled_from([1, 16]), st.sampled_from([8, 24, 64]),
)  # fmt: skip
def test_stored_keys_are_where_they_belong_and_nothing_else_changes(tokens, seed, dtype, page, size):
    torch.manual_seed(seed)
    wide = torch.randn(tokens, 5, size).to(dtype)
    slots = torch.randperm(32)[:tokens].int()
    pools = [torch.full(attention.pool_shape(32, 2, size, page), torch.nan, dtype=dtype) for _ in range(2)]
    for ops, kv in zip((Native(), REFERENCE), pools, strict=True):
        ops.paged_store(wide[:, :2], wide[:, 2:4], slots, kv)
        assert int((~kv.isnan()).sum()) == tokens * 2 * 2 * size
    assert torch.equal(pools[0].nan_to_num(9), pools[1].nan_to_num(9))


@needs_native
@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 20), st.integers(0, 2**32), st.sampled_from([torch.float32, torch.bfloat16]),
    st.sampled_from([1, 16]), st.sampled_from([8, 24, 64]),
)  # fmt: skip
def test_rounded_keys_are_the_references_to_the_bit(tokens, seed, dtype, page, size):
    """Into a pool of int8: nothing else changes, zeros and what is not finite included."""
    torch.manual_seed(seed)
    wide = (torch.randn(tokens, 5, size) * 10 ** torch.randn(tokens, 5, 1)).to(dtype)
    wide[::5], wide[1::7, :, 3] = 0, torch.inf
    slots = torch.randperm(32)[:tokens].int()
    pools = [poisoned(32, 2, size, page, torch.int8) for _ in range(2)]
    for ops, kv in zip((Native(), REFERENCE), pools, strict=True):
        ops.paged_store(wide[:, :2], wide[:, 2:4], slots, kv)
    ours, theirs = ([*attention._views(kv, size), *attention._scales(kv, size)] for kv in pools)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.float().nan_to_num(9), other.float().nan_to_num(9))
    lanes = attention.lanes_of(pools[0], size)
    keys, scales = attention._views(pools[0], size)[0], attention._scales(pools[0], size)[0]
    at = slots.long() // lanes, slots.long() % lanes
    back, want = keys[at].flatten(2).float() * scales[at][..., None], wide[:, :2].float()
    fine = want.isfinite().all(-1)
    assert (back[fine] - want[fine]).abs().le(0.501 * scales[at][fine][..., None]).all()
    assert back[~fine].isnan().all()


@st.composite
def partials(draw):
    """Outputs and log-sum-exps of several parts, some of them without keys and then poisoned."""
    torch.manual_seed(draw(st.integers(0, 2**32)))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    parts, tokens, heads, size = draw(st.integers(1, 5)), draw(st.integers(0, 4)), 3, 24
    outs = [torch.randn(tokens, heads, size).to(dtype) for _ in range(parts)]
    lses = [torch.randn(tokens, heads) * 20 for _ in range(parts)]
    for out, lse in zip(outs, lses, strict=True):
        empty = torch.rand(tokens, heads) < 0.3
        out[empty], lse[empty] = torch.nan, -torch.inf
    return outs, lses, dtype


@settings(max_examples=60, deadline=None)
@given(partials(), st.randoms(use_true_random=False))
def test_merged_parts_are_the_whole_in_any_order(parts, rng):
    outs, lses, dtype = parts
    got, lse = attention.merge_attention(outs, lses)
    want, want_lse = REFERENCE.merge_attention(outs, lses)
    close(got, want, dtype)
    close(lse, want_lse, torch.float32)
    order = list(range(len(outs)))
    rng.shuffle(order)
    mixed, mixed_lse = attention.merge_attention([outs[i] for i in order], [lses[i] for i in order])
    close(mixed, got, dtype)
    close(mixed_lse, lse, torch.float32)


@settings(max_examples=40, deadline=None)
@given(attentions())
def test_attention_over_two_halves_of_the_keys_merges_to_the_whole(arguments):
    """Even keys and odd keys, each with the striped mask, as two instances of a ring hold them."""
    q, kv, tables, rows, starts, lens, positions, page, _, _, scale, window, softcap = arguments
    if page != 1:
        return
    want, want_lse = attention.paged_attend(
        q, kv, tables, rows, starts, lens, positions, 1, 0, 1, scale, window, softcap, 1
    )
    outs, lses = [], []
    for half in range(2):
        known = ((lens - half + 1) // 2).int()
        out, lse = attention.paged_attend(
            q, kv, tables[:, half::2].contiguous(), rows, starts, known, positions, 1, half, 2, scale, window,
            softcap, 1,
        )  # fmt: skip
        outs.append(out)
        lses.append(lse)
    got, lse = attention.merge_attention(outs, lses)
    close(got, want, q.dtype)
    close(lse, want_lse, torch.float32)
