"""Every kernel of this CPU against the torch references, on random shapes and poisoned memory."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.kernels import ops, reference
from plait.kernels.choice import choose

KERNELS = choose()
needs_native = pytest.mark.skipif(KERNELS.native is None, reason=f"no native kernels: {KERNELS.why}")


@st.composite
def attentions(draw):
    """Arguments of `attend`: rows with prefixes, chunks and decodes, some of them without any key."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    page = draw(st.sampled_from([1, 4, 16]))
    kv_heads, share = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 2, 3, 9]))
    size = 8 * draw(st.integers(2, 32))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    rows = draw(st.integers(1, 5))
    lens = rng.integers(0, 150, rows)
    counts = [int(rng.integers(0, min(n, 40) + 1)) if n else 1 for n in lens]
    tables, pages = rows + 2, -(-150 // page)
    slots = tables * pages * page
    order = torch.from_numpy(rng.permutation(tables * pages)).int().view(tables, pages)
    rows_R = torch.from_numpy(rng.permutation(tables)[:rows]).int()
    pools = [torch.full((slots, kv_heads, size), torch.nan, dtype=dtype) for _ in range(2)]
    for r, n in enumerate(lens):
        at = torch.arange(int(n))
        used = order[rows_R[r].long(), at // page].long() * page + at % page
        for pool in pools:
            pool[used] = torch.from_numpy(rng.standard_normal((n, kv_heads, size))).to(dtype)
    heads, tokens = kv_heads * share, sum(counts)
    positions = np.concatenate(
        [np.arange(max(0, n - c), max(0, n - c) + c) for n, c in zip(lens, counts, strict=True)]
    )
    # Queries come as slices of a wider buffer, as those of a product for several layers do.
    wide = torch.from_numpy(rng.standard_normal((tokens, heads + kv_heads, size))).to(dtype)
    starts = torch.tensor([0, *np.cumsum(counts)], dtype=torch.int32)
    window, softcap = draw(st.sampled_from([0, 1, 7, 64])), draw(st.sampled_from([0.0, 5.0]))
    table = (order, rows_R, starts, torch.from_numpy(lens).int(), torch.from_numpy(positions))
    return (wide[:, :heads], *pools, *table, page, size**-0.5, window, softcap)


@needs_native
@settings(max_examples=60, deadline=None)
@given(attentions(), st.sampled_from(KERNELS.native.isas() if KERNELS.native else [""]))
def test_attention_equals_the_reference(arguments, isa):
    from plait.kernels import native

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "_ISA", isa)
        one, lse = native.attend(*arguments, 1)
        two, lse_two = native.attend(*arguments, 2)
    want, want_lse = reference.attend(*arguments, 1)
    assert torch.equal(one, two)
    assert torch.equal(lse, lse_two)
    slack = 2e-5 if one.dtype == torch.float32 else 1e-2
    torch.testing.assert_close(one, want, rtol=slack, atol=slack)
    torch.testing.assert_close(lse, want_lse, rtol=1e-5, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(attentions(), st.data())
def test_a_query_does_not_see_its_batch(arguments, data):
    """Each token computed alone gives the same bits as among all others."""
    q_THD, k_pool, v_pool, tables, rows, starts, lens, positions, *rest = arguments
    whole, lse = ops.attend(*arguments, 1)
    r = data.draw(st.integers(0, len(rows) - 1))
    if starts[r + 1] == starts[r]:
        return
    t = data.draw(st.integers(int(starts[r]), int(starts[r + 1]) - 1))
    one = torch.tensor([0, 1], dtype=torch.int32)
    # Cut off what comes after: a chunk that ends here has no later keys.
    known = torch.minimum(lens[r], positions[t] + 1).int()[None]
    table = (tables, rows[r : r + 1], one, known, positions[t : t + 1].clone())
    alone, alone_lse = ops.attend(q_THD[t : t + 1].clone(), k_pool, v_pool, *table, *rest, 1)
    assert torch.equal(alone[0], whole[t])
    assert torch.equal(alone_lse[0], lse[t])


@st.composite
def products(draw):
    """(x, weights to stack, bias)."""
    torch.manual_seed(draw(st.integers(0, 2**32)))
    tokens, inputs = draw(st.integers(0, 30)), draw(st.integers(1, 90))
    outputs = draw(st.lists(st.integers(1, 80), min_size=1, max_size=3))
    weights = [torch.randn(n, inputs) for n in outputs]
    bias = torch.randn(sum(outputs)) if draw(st.booleans()) else None
    return torch.randn(tokens, inputs + 3)[:, :inputs], weights, bias


@needs_native
@settings(max_examples=80, deadline=None)
@given(products(), st.sampled_from(KERNELS.native.isas() if KERNELS.native else [""]))
def test_linear_equals_the_reference(product, isa):
    from plait.kernels import native

    x, weights, bias = product
    outputs = sum(len(weight) for weight in weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "_ISA", isa)
        packed = native.pack(weights)
        one = native.linear(x, packed, bias, outputs, 1)
        two = native.linear(x, packed, bias, outputs, 2)
    assert torch.equal(one, two)
    want = reference.linear(x, reference.pack(weights), bias, outputs, 1)
    torch.testing.assert_close(one, want, rtol=1e-4, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(products())
def test_a_token_does_not_see_its_batch(product):
    x, weights, bias = product
    packed, outputs = ops.pack(weights), sum(len(weight) for weight in weights)
    whole = ops.linear(x, packed, bias, outputs, 1)
    for t in range(len(x)):
        assert torch.equal(ops.linear(x[t : t + 1].clone(), packed, bias, outputs, 1)[0], whole[t])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 20), st.integers(0, 2**32), st.sampled_from([torch.float32, torch.bfloat16]))
def test_stored_keys_are_where_they_belong_and_nothing_else_changes(tokens, seed, dtype):
    torch.manual_seed(seed)
    wide = torch.randn(tokens, 5, 16).to(dtype)
    slots = torch.randperm(32)[:tokens].int()
    pools = [torch.full((32, 2, 16), torch.nan, dtype=dtype) for _ in range(4)]
    ops.store_kv(wide[:, :2], wide[:, 2:4], slots, *pools[:2])
    reference.store_kv(wide[:, :2], wide[:, 2:4], slots, *pools[2:])
    for ours, want in zip(pools[:2], pools[2:], strict=True):
        assert torch.equal(ours.nan_to_num(9), want.nan_to_num(9))
        assert int(ours.isnan().any(-1).any(-1).sum()) == 32 - tokens
