"""Masked statistics against Python's own."""

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.training.masked import Moments, masked_mean, masked_sum, whiten
from tests.training.batches import Batch, batches


@settings(deadline=None)
@given(batches())
def test_sums_and_means_are_those_of_the_selected_values(batch: Batch) -> None:
    values_BT, mask_BT = batch.normal(0).masked_fill(~batch.mask_BT, math.nan), batch.mask_BT
    for row_T, chosen_T, total, mean in zip(
        values_BT, mask_BT, masked_sum(values_BT, mask_BT, 1), masked_mean(values_BT, mask_BT, 1), strict=True
    ):
        assert total.item() == pytest.approx(math.fsum(row_T[chosen_T].tolist()))
        assert mean.item() == pytest.approx(statistics.fmean(row_T[chosen_T].tolist()))
    assert masked_mean(values_BT, mask_BT).item() == pytest.approx(
        statistics.fmean(values_BT[mask_BT].tolist())
    )


@settings(deadline=None)
@given(batches(), st.data())
def test_moments_of_shards_merge_into_those_of_the_batch(batch: Batch, data: st.DataObject) -> None:
    values_BT, mask_BT = batch.normal(0), batch.mask_BT
    cut = data.draw(st.integers(0, mask_BT.shape[0]))
    parts = [Moments.of(values_BT[part], mask_BT[part]) for part in (slice(0, cut), slice(cut, None))]
    whole, merged = Moments.of(values_BT, mask_BT), Moments.merge(parts)
    assert merged.count == whole.count
    assert merged.mean == pytest.approx(whole.mean, abs=1e-12)
    assert merged.variance == pytest.approx(whole.variance, abs=1e-12)
    sharded = [
        whiten(values_BT[part], mask_BT[part], moments=merged) for part in (slice(0, cut), slice(cut, None))
    ]
    torch.testing.assert_close(torch.cat(sharded), whiten(values_BT, mask_BT), rtol=1e-9, atol=1e-9)


@settings(deadline=None)
@given(batches())
def test_whitening_gives_mean_0_and_variance_1_or_keeps_the_mean(batch: Batch) -> None:
    chosen = batch.normal(0)[batch.mask_BT].tolist()
    white = whiten(batch.normal(0), batch.mask_BT)
    assert (white[~batch.mask_BT] == 0).all()
    spread = statistics.variance(chosen) if len(chosen) > 1 else 0.0
    expected = [(value - statistics.fmean(chosen)) / math.sqrt(spread + 1e-8) for value in chosen]
    assert white[batch.mask_BT].tolist() == pytest.approx(expected, rel=1e-6, abs=1e-6)
    kept = whiten(batch.normal(0), batch.mask_BT, shift_mean=False)[batch.mask_BT].tolist()
    assert statistics.fmean(kept) == pytest.approx(statistics.fmean(chosen), abs=1e-9)


def test_nothing_has_no_moments() -> None:
    none = torch.zeros(2, 3, dtype=torch.bool)
    assert Moments.of(torch.ones(2, 3), none) == Moments(0, 0.0, 0.0) == Moments.merge([])
    assert masked_mean(torch.ones(2, 3), none).item() == 0
