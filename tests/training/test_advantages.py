"""Advantages against closed forms and plain loops."""

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.spec.errors import UserError
from plait.training.advantages import (
    GaeConfig,
    GroupConfig,
    Scale,
    against_greedy,
    discounted_returns,
    gae,
    group_relative,
    informative,
    leave_one_out,
    per_token,
    reinforce_plus_plus,
    reinforce_plus_plus_baseline,
)
from plait.training.masked import whiten
from tests.training.batches import Batch, batches

FRACTION = st.floats(0, 1)
SCORED = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from((-1.0, 0.0, 0.5, 2.0))), min_size=1, max_size=12
)


def slow_gae(rewards: list[float], values: list[float], config: GaeConfig) -> list[float]:
    """The definition: an exponentially weighted sum of temporal differences."""
    follows = [*values[1:], 0.0]
    deltas = [r + config.gamma * after - v for r, v, after in zip(rewards, values, follows, strict=True)]
    decay = config.gamma * config.lam
    return [
        math.fsum(decay**ahead * delta for ahead, delta in enumerate(deltas[place:]))
        for place in range(len(deltas))
    ]


@settings(deadline=None)
@given(batches(), st.floats(0.1, 1), FRACTION)
def test_gae_is_its_definition_over_the_tokens_that_count(batch: Batch, gamma: float, lam: float) -> None:
    rewards_BT, values_BT, config = batch.normal(0), batch.normal(1), GaeConfig(gamma, lam)
    advantages_BT, returns_BT = gae(rewards_BT, values_BT, batch.mask_BT, config)
    for row, mask_T in enumerate(batch.mask_BT):
        values = values_BT[row, mask_T].tolist()
        expected = slow_gae(rewards_BT[row, mask_T].tolist(), values, config)
        assert advantages_BT[row, mask_T].tolist() == pytest.approx(expected, abs=1e-9)
        returns = [a + v for a, v in zip(expected, values, strict=True)]
        assert returns_BT[row, mask_T].tolist() == pytest.approx(returns, abs=1e-9)
    assert not advantages_BT[~batch.mask_BT].any()
    assert not returns_BT[~batch.mask_BT].any()


@settings(deadline=None)
@given(batches())
def test_gae_with_lambda_1_is_the_rewards_less_the_value(batch: Batch) -> None:
    rewards_BT, values_BT = batch.normal(0), batch.normal(1)
    advantages_BT, returns_BT = gae(rewards_BT, values_BT, batch.mask_BT, GaeConfig(1.0, 1.0))
    expected_BT = discounted_returns(rewards_BT, batch.mask_BT, 1.0)
    torch.testing.assert_close(returns_BT, expected_BT)
    torch.testing.assert_close(advantages_BT, (expected_BT - values_BT).where(batch.mask_BT, 0))


@settings(deadline=None)
@given(batches(), st.floats(0.1, 1))
def test_returns_are_discounted_sums(batch: Batch, gamma: float) -> None:
    rewards_BT = batch.normal(0)
    returns_BT = discounted_returns(rewards_BT, batch.mask_BT, gamma)
    for row, mask_T in enumerate(batch.mask_BT):
        rewards = rewards_BT[row, mask_T].tolist()
        expected = [
            math.fsum(gamma**ahead * reward for ahead, reward in enumerate(rewards[place:]))
            for place in range(len(rewards))
        ]
        assert returns_BT[row, mask_T].tolist() == pytest.approx(expected, abs=1e-9)
    white_BT = reinforce_plus_plus(rewards_BT, batch.mask_BT, gamma)
    torch.testing.assert_close(white_BT, whiten(returns_BT, batch.mask_BT))


@settings(deadline=None)
@given(SCORED)
def test_group_estimators_are_their_definitions(scored: list[tuple[int, float]]) -> None:
    groups_B = torch.tensor([group for group, _ in scored])
    scores_B = torch.tensor([score for _, score in scored], dtype=torch.float64)
    grpo = group_relative(scores_B, groups_B, GroupConfig()).tolist()
    plain = group_relative(scores_B, groups_B, GroupConfig(Scale.NONE)).tolist()
    rloo, teaches = leave_one_out(scores_B, groups_B).tolist(), informative(scores_B, groups_B).tolist()
    for place, (group, score) in enumerate(scored):
        peers = [other for g, other in scored if g == group]
        others = [other for k, (g, other) in enumerate(scored) if g == group and k != place]
        apart = score - statistics.fmean(peers)
        spread = statistics.stdev(peers) if others else 0.0
        assert plain[place] == pytest.approx(apart, abs=1e-9)
        assert grpo[place] == pytest.approx(apart / (spread + 1e-6), abs=1e-6)
        assert rloo[place] == pytest.approx(score - statistics.fmean(others) if others else 0.0, abs=1e-9)
        assert teaches[place] == (len(set(peers)) > 1)


def test_the_whole_batch_may_scale_groups() -> None:
    scores_B, groups_B = torch.tensor([0.0, 2.0, 5.0, 9.0], dtype=torch.float64), torch.tensor([7, 7, 3, 3])
    found = group_relative(scores_B, groups_B, GroupConfig(Scale.BATCH, epsilon=0.5))
    spread = statistics.stdev([0.0, 2.0, 5.0, 9.0]) + 0.5
    assert found.tolist() == pytest.approx([-1 / spread, 1 / spread, -2 / spread, 2 / spread])


def test_reinforce_plus_plus_baseline_whitens_distances_over_tokens() -> None:
    mask_BT = torch.tensor([[True, True, False], [True, False, False]])
    scores_B, groups_B = torch.tensor([1.0, 3.0], dtype=torch.float64), torch.tensor([0, 0])
    found = reinforce_plus_plus_baseline(scores_B, groups_B, mask_BT)
    torch.testing.assert_close(found, whiten(per_token(torch.tensor([-1.0, 1.0]).double(), mask_BT), mask_BT))


def test_remax_takes_off_the_greedy_score() -> None:
    mask_BT = torch.tensor([[True, False, True]])
    found = against_greedy(torch.tensor([[1.0, 50.0, 2.0]]), torch.tensor([0.5]), mask_BT)
    assert found.tolist() == [[2.5, 0.0, 1.5]]


@pytest.mark.parametrize("wrong", [{"gamma": 0.0}, {"gamma": 1.1}, {"lam": -0.1}, {"lam": 1.1}])
def test_wrong_discounts_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        GaeConfig(**wrong)
