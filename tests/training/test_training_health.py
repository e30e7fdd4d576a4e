"""Figures of health, and weights for what another program drew."""

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.spec.errors import UserError
from plait.training.health import explained_variance, policy_health, response_health, value_health
from plait.training.losses import PolicyLossConfig, ValueLossConfig
from plait.training.mismatch import Level, MismatchConfig, Outside, gap, weights
from tests.training.batches import Batch, batches


@settings(deadline=None)
@given(batches())
def test_policy_figures_are_counts_over_tokens(batch: Batch) -> None:
    new_BT, old_BT, advantages_BT = batch.normal(0), batch.normal(1), batch.normal(2)
    config = PolicyLossConfig(0.2, 0.28, 3.0)
    found = policy_health(new_BT, old_BT, advantages_BT, batch.mask_BT, config, batch.normal(3))
    clipped, bounded, ratios, squares, distances = [], [], [], [], []
    for row, column in batch.mask_BT.nonzero().tolist():
        distance = (new_BT - old_BT)[row, column].item()
        ratio, positive = math.exp(distance), advantages_BT[row, column].item() > 0
        clipped.append(ratio > 1.28 if positive else ratio < 0.8)
        bounded.append(not positive and ratio > 3.0)
        ratios.append(ratio)
        squares.append(distance**2 / 2)
        distances.append(-distance)
    assert found.clip_fraction == pytest.approx(statistics.fmean(clipped))
    assert found.dual_clip_fraction == pytest.approx(statistics.fmean(bounded))
    assert found.approx_kl == pytest.approx(statistics.fmean(squares))
    assert found.old_kl == pytest.approx(statistics.fmean(distances))
    assert found.ratio_mean == pytest.approx(statistics.fmean(ratios))
    assert found.ratio_variance == pytest.approx(statistics.variance(ratios) if len(ratios) > 1 else 0.0)
    assert found.ratio_largest == pytest.approx(max(ratios))
    assert found.entropy == pytest.approx(statistics.fmean(batch.normal(3)[batch.mask_BT].tolist()))


@settings(deadline=None)
@given(batches())
def test_the_first_mini_batch_has_ratio_1(batch: Batch) -> None:
    new_BT = batch.normal(0)
    found = policy_health(
        new_BT, new_BT.clone(), batch.normal(1), batch.mask_BT, PolicyLossConfig(), batch.normal(2)
    )
    assert (found.ratio_mean, found.ratio_largest, found.ratio_variance) == (1.0, 1.0, 0.0)
    assert found.clip_fraction == found.approx_kl == 0.0


def test_explained_variance_is_1_for_the_truth_and_0_for_a_constant() -> None:
    returns_BT, mask_BT = torch.tensor([[1.0, 2.0, 4.0, 99.0]]), torch.tensor([[True, True, True, False]])
    assert explained_variance(returns_BT, returns_BT, mask_BT) == 1.0
    assert explained_variance(torch.full((1, 4), 3.0), returns_BT, mask_BT) == pytest.approx(0.0)
    assert math.isnan(explained_variance(returns_BT, torch.ones(1, 4), mask_BT))
    found = value_health(returns_BT, returns_BT - 1, returns_BT, mask_BT, ValueLossConfig(0.2))
    assert found.clip_fraction == 1.0
    assert (
        value_health(returns_BT, returns_BT, returns_BT, mask_BT, ValueLossConfig(None)).clip_fraction == 0.0
    )


def test_lengths_of_responses() -> None:
    found = response_health(torch.arange(1, 102), torch.arange(101) < 50)
    assert (found.median_tokens, found.p99_tokens) == (51.0, 100.0)
    assert found.finished == pytest.approx(50 / 101)


@settings(deadline=None)
@given(batches(), st.sampled_from(Level), st.sampled_from(Outside))
def test_weights_are_bounded_ratios(batch: Batch, level: Level, outside: Outside) -> None:
    trained_BT, drawn_BT = batch.normal(0), batch.normal(1)
    found_BT = weights(trained_BT, drawn_BT, batch.mask_BT, MismatchConfig(level, 2.0, 0.5, outside))
    for row, column in batch.mask_BT.nonzero().tolist():
        gaps_T = (trained_BT - drawn_BT)[row]
        gap_here = gaps_T[column] if level is Level.TOKEN else gaps_T[batch.mask_BT[row]].sum()
        ratio = math.exp(gap_here.item())
        inside = 0.5 <= ratio <= 2.0
        bounded = min(max(ratio, 0.5), 2.0) if outside is Outside.TRUNCATE else ratio * inside
        assert found_BT[row, column].item() == pytest.approx(bounded)
    assert not found_BT[~batch.mask_BT].any()


def test_equal_programs_have_weight_1_and_no_gap() -> None:
    logprobs_BT, mask_BT = torch.tensor([[-1.0, -2.0]], requires_grad=True), torch.tensor([[True, False]])
    found_BT = weights(logprobs_BT, logprobs_BT, mask_BT, MismatchConfig())
    assert found_BT.tolist() == [[1.0, 0.0]]
    assert not found_BT.requires_grad
    found = gap(logprobs_BT, torch.tensor([[-1.5, 9.0]]), mask_BT)
    assert (found.largest, found.mean) == (0.5, 0.5)
    assert found.kl == pytest.approx(math.exp(0.5) - 1 - 0.5)


@pytest.mark.parametrize("bounds", [(1.0, 1.0), (2.0, -0.1)])
def test_wrong_bounds_are_refused(bounds: tuple[float, float]) -> None:
    with pytest.raises(UserError, match="bounds"):
        MismatchConfig(Level.TOKEN, *bounds)
