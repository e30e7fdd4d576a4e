"""Triton's attention against the torch reference, on poisoned memory. Runs under the interpreter."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.kernels import attention
from plait.kernels.attention import Reference
from plait.kernels.triton.attention import Triton
from tests.kernels.test_attention_ops import attentions, close, partials

REFERENCE = Reference()


def pool_of_gpu(kv_BKXE, size):
    """The same keys and values, and the same poison, as they lie on a GPU."""
    keys, values = attention._views(kv_BKXE, size)
    values = values.flatten(1, 2)
    return torch.stack([keys.flatten(3), values], 3).permute(0, 2, 3, 1, 4).contiguous()


@settings(max_examples=50, deadline=None)
@given(attentions(longest=(20, 150), rounded=False), st.sampled_from([1, 4, 16]))
def test_attention_equals_the_reference(arguments, processors):
    q, kv, *rest = arguments
    got, got_lse = Triton(processors).paged_attend(q, pool_of_gpu(kv, q.shape[2]), *rest, 1)
    want, want_lse = REFERENCE.paged_attend(*arguments, 1)
    close(got, want, q.dtype)
    close(got_lse, want_lse, torch.float32)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_decoding_in_splits_equals_the_reference(data):
    """One token a row, as many splits as there are blocks of keys."""
    q, kv, tables, rows, starts, lens, positions, *rest = data.draw(attentions(longest=(300,), rounded=False))
    last = (starts[1:] - 1).long()[starts[1:] > starts[:-1]]
    kept = starts[1:] > starts[:-1]
    ones = torch.arange(len(last) + 1, dtype=torch.int32)
    step = (tables, rows[kept], ones, lens[kept], positions[last])
    got, got_lse = Triton(64).paged_attend(q[last], pool_of_gpu(kv, q.shape[2]), *step, *rest, 1)
    want, want_lse = REFERENCE.paged_attend(q[last], kv, *step, *rest, 1)
    close(got, want, q.dtype)
    close(got_lse, want_lse, torch.float32)


@pytest.mark.parametrize("counts", [(0, 2), (2, 0, 1), (3,), (1, 40, 1), (0, 0, 5), (1, 1), (130, 2)])
def test_rows_of_any_number_of_tokens(counts):
    torch.manual_seed(0)
    heads, kv_heads, size, page = 4, 2, 16, 16
    lens = torch.tensor([count + 3 for count in counts], dtype=torch.int32)
    tables = torch.randperm(len(counts) * 9).int().view(len(counts), 9)
    starts = torch.tensor([0, *counts]).cumsum(0).int()
    rows = torch.arange(len(counts)).int()
    positions = torch.cat([torch.arange(3, 3 + count) for count in counts])
    kv = torch.randn(attention.pool_shape(tables.numel() * page, kv_heads, size, page))
    q = torch.randn(sum(counts), heads, size)
    rest = (tables, rows, starts, lens, positions, page, 0, 1, 0.25, 0, 0.0, 1)
    want, want_lse = REFERENCE.paged_attend(q, kv, *rest)
    got, got_lse = Triton(16).paged_attend(q, pool_of_gpu(kv, size), *rest)
    close(got, want, q.dtype)
    close(got_lse, want_lse, torch.float32)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 20), st.integers(0, 2**32), st.sampled_from([torch.float32, torch.bfloat16]),
    st.sampled_from([1, 16]), st.sampled_from([8, 24, 64]),
)  # fmt: skip
def test_stored_keys_are_where_they_belong_and_nothing_else_changes(tokens, seed, dtype, page, size):
    torch.manual_seed(seed)
    wide = torch.randn(tokens, 5, size).to(dtype)
    slots = torch.randperm(32)[:tokens].int()
    theirs = torch.full(attention.pool_shape(32, 2, size, page), torch.nan, dtype=dtype)
    ours = torch.full(attention.pool_shape(32, 2, size, page, gpu=True), torch.nan, dtype=dtype)
    REFERENCE.paged_store(wide[:, :2], wide[:, 2:4], slots, theirs)
    Triton().paged_store(wide[:, :2], wide[:, 2:4], slots, ours)
    assert torch.equal(ours.nan_to_num(9), pool_of_gpu(theirs, size).nan_to_num(9))


@settings(max_examples=30, deadline=None)
@given(partials())
def test_merged_parts_are_the_reference(parts):
    outs, lses, dtype = parts
    got, lse = Triton().merge_attention(outs, lses)
    want, want_lse = REFERENCE.merge_attention(outs, lses)
    close(got, want, dtype)
    close(lse, want_lse, torch.float32)
