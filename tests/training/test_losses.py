"""Losses against plain loops, their gradients against finite differences."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from plait.spec.errors import UserError
from plait.training.aggregate import AggregateConfig, Mean, Whole, aggregate
from plait.training.losses import (
    Kl,
    PolicyLossConfig,
    Ratio,
    ValueLossConfig,
    kl_penalty,
    policy_loss,
    value_loss,
)
from plait.training.masked import masked_mean
from tests.training.batches import Batch, batches

DECOUPLED = PolicyLossConfig(0.2, 0.28, 3.0)


def means(tokens: int = 9) -> list[AggregateConfig]:
    return [AggregateConfig(mean, tokens if mean is Mean.SEQUENCE_SUMS_SCALED else None) for mean in Mean]


def slow_policy_loss(logprob: float, old: float, advantage: float, config: PolicyLossConfig) -> float:
    """Of one token, case by case."""
    ratio = math.exp(logprob - old)
    if advantage >= 0:
        return -advantage * min(ratio, 1 + config.clip_high)
    counted = max(ratio, 1 - config.clip_low)
    return -advantage * (counted if config.dual_clip is None else min(counted, config.dual_clip))


def check_gradient(loss_of: Callable[[Tensor], Tensor], at_BT: Tensor, step: float = 1e-6) -> None:
    """Backward equals central differences, entry by entry."""
    leaf_BT = at_BT.clone().requires_grad_()
    loss_of(leaf_BT).backward()
    assert leaf_BT.grad is not None
    for place in range(at_BT.numel()):
        nudge_BT = torch.zeros_like(at_BT)
        nudge_BT.view(-1)[place] = step
        slope = (loss_of(at_BT + nudge_BT) - loss_of(at_BT - nudge_BT)).item() / (2 * step)
        assert leaf_BT.grad.view(-1)[place].item() == pytest.approx(slope, rel=1e-4, abs=1e-6)


@settings(deadline=None)
@given(batches(), st.sampled_from((PolicyLossConfig(), DECOUPLED)))
def test_policy_loss_is_the_clipped_surrogate(batch: Batch, config: PolicyLossConfig) -> None:
    logprobs_BT, old_BT, advantages_BT = batch.normal(0), batch.normal(1), batch.normal(2)
    loss_BT = policy_loss(logprobs_BT, old_BT, advantages_BT, batch.mask_BT, config)
    for row, column in batch.mask_BT.nonzero().tolist():
        arrays = (array[row, column].item() for array in (logprobs_BT, old_BT, advantages_BT))
        assert loss_BT[row, column].item() == pytest.approx(slow_policy_loss(*arrays, config))


@settings(deadline=None)
@given(batches())
def test_sequence_ratio_is_the_geometric_mean(batch: Batch) -> None:
    logprobs_BT, old_BT = batch.normal(0), batch.normal(1)
    config = PolicyLossConfig(ratio=Ratio.SEQUENCE)
    loss_BT = policy_loss(logprobs_BT, old_BT, torch.ones_like(old_BT), batch.mask_BT, config)
    for row, mask_T in enumerate(batch.mask_BT):
        ratio = math.exp(masked_mean((logprobs_BT - old_BT)[row], mask_T).item())
        expected = -min(ratio, 1.2)
        assert loss_BT[row, mask_T].tolist() == pytest.approx([expected] * int(mask_T.sum()))


@settings(max_examples=25, deadline=None)
@given(batches(3, 4), st.sampled_from(Ratio), st.sampled_from(means()))
def test_policy_gradients_are_finite_differences(batch: Batch, ratio: Ratio, mean: AggregateConfig) -> None:
    mask_BT, config = batch.mask_BT, PolicyLossConfig(0.2, 0.28, 3.0, ratio)
    advantages_BT = batch.normal(2)[:, :1].expand(mask_BT.shape)
    whole = Whole.of(mask_BT)

    def loss_of(logprobs_BT: Tensor) -> Tensor:
        loss_BT = policy_loss(logprobs_BT, batch.normal(1), advantages_BT, mask_BT, config)
        return aggregate(loss_BT, mask_BT, whole, mean)

    check_gradient(loss_of, batch.normal(1) + 0.4 * batch.normal(0))


@settings(deadline=None)
@given(batches(3, 4), st.sampled_from((None, 0.2)))
def test_value_loss_and_gradient(batch: Batch, clip: float | None) -> None:
    values_BT, old_BT, returns_BT = batch.normal(0), batch.normal(1), batch.normal(2)
    config, whole = ValueLossConfig(clip), Whole.of(batch.mask_BT)
    loss_BT = value_loss(values_BT, old_BT, returns_BT, config)
    for row, column in batch.mask_BT.nonzero().tolist():
        value, old, wanted = (array[row, column].item() for array in (values_BT, old_BT, returns_BT))
        near = value if clip is None else min(max(value, old - clip), old + clip)
        assert loss_BT[row, column].item() == pytest.approx(
            max((value - wanted) ** 2, (near - wanted) ** 2) / 2
        )

    def loss_of(values_BT: Tensor) -> Tensor:
        each_BT = value_loss(values_BT, old_BT, returns_BT, config)
        return aggregate(each_BT, batch.mask_BT, whole, AggregateConfig())

    check_gradient(loss_of, values_BT)


@settings(deadline=None)
@given(batches(), st.sampled_from(means()), st.integers(0, 5))
def test_micro_batches_add_up_to_the_mini_batch(batch: Batch, mean: AggregateConfig, cut: int) -> None:
    loss_BT, mask_BT = batch.normal(0), batch.mask_BT
    whole = Whole.of(mask_BT)
    assert whole == Whole.of(mask_BT[:cut], mask_BT[cut:])
    parts = [aggregate(loss_BT[part], mask_BT[part], whole, mean) for part in (slice(cut), slice(cut, None))]
    torch.testing.assert_close(sum(parts), aggregate(loss_BT, mask_BT, whole, mean))


def test_means_differ_as_they_should() -> None:
    loss_BT = torch.tensor([[1.0, 2.0, 3.0], [10.0, 99.0, 99.0]])
    mask_BT = torch.tensor([[True, True, True], [True, False, False]])
    found = [aggregate(loss_BT, mask_BT, Whole.of(mask_BT), mean).item() for mean in means(4)]
    assert found == [16 / 4, (2 + 10) / 2, (6 + 10) / 2, (6 + 10) / 2 / 4]


def test_rows_outside_the_mask_neither_count_nor_move() -> None:
    mask_BT = torch.tensor([[True, False], [False, False]])
    logprobs_BT = torch.tensor([[-1.0, -torch.inf], [-torch.inf, -2.0]], requires_grad=True)
    old_BT = torch.full((2, 2), -1.0)
    for mean in means():
        loss_BT = policy_loss(logprobs_BT, old_BT, torch.ones(2, 2), mask_BT, PolicyLossConfig())
        (gradient_BT,) = torch.autograd.grad(
            aggregate(loss_BT, mask_BT, Whole.of(mask_BT), mean), logprobs_BT
        )
        assert gradient_BT[0, 0] != 0
        assert not gradient_BT[~mask_BT].any()


@pytest.mark.parametrize("distance", [-3.0, -0.2, 0.0, 0.4, 2.0])
def test_divergence_estimators(distance: float) -> None:
    found = {
        kind: kl_penalty(torch.tensor([[distance]]).double(), torch.zeros(1, 1), kind).item() for kind in Kl
    }
    k3 = math.exp(-distance) - 1 + distance
    expected = {
        Kl.K1: distance,
        Kl.K2: distance**2 / 2,
        Kl.K3: k3,
        Kl.ABS: abs(distance),
        Kl.LOW_VARIANCE: min(k3, 10),
    }
    assert found == pytest.approx(expected)


def test_estimators_average_to_the_divergence_and_k2s_gradient_to_its_gradient() -> None:
    """Exactly, over all words of a small vocabulary."""
    logits_V = torch.tensor([0.3, -1.0, 2.0, 0.1], dtype=torch.float64, requires_grad=True)
    policy_V, reference_V = logits_V.log_softmax(0), torch.tensor([0.4, 0.3, 0.2, 0.1]).double().log()
    exact = (policy_V.exp() * (policy_V - reference_V)).sum()
    (slope_V,) = torch.autograd.grad(exact, logits_V, retain_graph=True)
    chances_V = policy_V.exp().detach()
    for kind in (Kl.K1, Kl.K3):
        estimate = (chances_V * kl_penalty(policy_V, reference_V, kind, k2_gradient=True)).sum()
        (found_V,) = torch.autograd.grad(estimate, logits_V, retain_graph=True)
        assert estimate.item() == pytest.approx(exact.item())
        torch.testing.assert_close(found_V, slope_V)


def test_far_log_ratios_stay_finite() -> None:
    far = torch.tensor([[-1e4]], requires_grad=True)
    mask = torch.ones(1, 1, dtype=torch.bool)
    loss = policy_loss(far, torch.zeros(1, 1), -torch.ones(1, 1), mask, PolicyLossConfig())
    loss = loss + policy_loss(-far, torch.zeros(1, 1), -torch.ones(1, 1), mask, PolicyLossConfig())
    (loss + kl_penalty(far, torch.zeros(1, 1), Kl.K3)).sum().backward()
    assert loss.isfinite().all()
    assert far.grad is not None
    assert far.grad.isfinite().all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: PolicyLossConfig(clip_low=1.0),
        lambda: PolicyLossConfig(clip_high=-0.1),
        lambda: PolicyLossConfig(dual_clip=1.1),
        lambda: AggregateConfig(Mean.TOKENS, 5),
        lambda: AggregateConfig(Mean.SEQUENCE_SUMS_SCALED),
        lambda: AggregateConfig(Mean.SEQUENCE_SUMS_SCALED, 0),
    ],
)
def test_settings_that_mean_nothing_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(UserError):
        make()
