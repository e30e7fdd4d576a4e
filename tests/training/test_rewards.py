"""Where responses end, what their scores become, and where they stand."""

import pytest
import torch
from hypothesis import given, settings

from plait.spec.errors import UserError
from plait.training.kl_control import KlControlConfig, next_coefficient
from plait.training.logits import entropy, token_logprobs
from plait.training.responses import last_position, one_longer, until_stop
from plait.training.rewards import (
    OverlongConfig,
    ScoreConfig,
    final_scores,
    overlong,
    place_scores,
    token_rewards,
)
from tests.training.batches import Batch, batches

PAD, EOS = 0, 9


def test_a_response_keeps_its_stop_token_even_if_padding_is_the_same() -> None:
    tokens_BT = torch.tensor([[5, EOS, EOS, EOS], [5, 6, 7, 8], [EOS, 5, 6, 7], [5, 6, 7, EOS]])
    mask_BT, finished_B = until_stop(tokens_BT, [EOS])
    assert mask_BT.sum(1).tolist() == [2, 4, 1, 4]
    assert finished_B.tolist() == [True, False, True, True]
    mask_BT, _ = until_stop(tokens_BT, [6, EOS])
    assert mask_BT.sum(1).tolist() == [2, 2, 1, 2]


@settings(deadline=None)
@given(batches())
def test_the_last_token_is_the_last_selected_one(batch: Batch) -> None:
    expected = [max(place for place, here in enumerate(row) if here) for row in batch.mask_BT.tolist()]
    assert last_position(batch.mask_BT).tolist() == expected
    longer_BT = one_longer(batch.mask_BT)
    for row, last in enumerate(expected):
        added = (longer_BT[row] & ~batch.mask_BT[row]).nonzero().flatten().tolist()
        assert added == ([last + 1] if last + 1 < batch.mask_BT.shape[1] else [])


def test_a_sample_without_tokens_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="last"):
        last_position(torch.zeros(1, 3, dtype=torch.bool))


@settings(deadline=None)
@given(batches())
def test_rewards_add_up_to_the_score_less_the_divergence(batch: Batch) -> None:
    scores_B, kl_BT = batch.normal(0)[:, 0], batch.normal(1)
    rewards_BT = token_rewards(scores_B, kl_BT, batch.mask_BT, 0.1)
    assert not rewards_BT[~batch.mask_BT].any()
    torch.testing.assert_close(rewards_BT.sum(1), scores_B - 0.1 * kl_BT.where(batch.mask_BT, 0).sum(1))
    placed_BT = place_scores(scores_B, batch.mask_BT)
    assert placed_BT.nonzero()[:, 1].tolist() == last_position(batch.mask_BT).tolist()


def test_scores_by_the_rules_in_their_order() -> None:
    scores_B, lengths_B = torch.tensor([50.0, 50.0, 1.0]), torch.tensor([10, 19, 20])
    finished_B = torch.tensor([True, False, False])
    rules = ScoreConfig(clip=10.0, missing_eos_penalty=1.0, overlong=OverlongConfig(20, 4, 2.0))
    assert final_scores(scores_B, lengths_B, finished_B, rules).tolist() == [10.0, 9.0 - 1.5, 0.0 - 2.0]
    fixed = ScoreConfig(missing_eos_score=-1.0)
    assert final_scores(scores_B, lengths_B, finished_B, fixed).tolist() == [50.0, -1.0, -1.0]
    assert final_scores(scores_B, lengths_B, finished_B, ScoreConfig()) is scores_B


def test_the_punishment_grows_over_the_buffer() -> None:
    lengths_B = torch.tensor([1, 16, 17, 18, 20])
    assert overlong(lengths_B, OverlongConfig(20, 4)).tolist() == [0, 0, -0.25, -0.5, -1]


@pytest.mark.parametrize("buffer", [0, 21])
def test_wrong_buffers_are_refused(buffer: int) -> None:
    with pytest.raises(UserError, match="buffer_tokens"):
        OverlongConfig(20, buffer)


def test_two_rules_for_one_thing_are_refused() -> None:
    with pytest.raises(UserError, match="exclude"):
        ScoreConfig(missing_eos_penalty=1.0, missing_eos_score=-1.0)


def test_the_weight_of_the_divergence_follows_the_target() -> None:
    adaptive = KlControlConfig(0.1, target=0.5, horizon_samples=1000)
    assert next_coefficient(0.1, 0.55, 100, adaptive) == pytest.approx(0.1 * (1 + 0.1 * 100 / 1000))
    assert next_coefficient(0.1, 50.0, 100, adaptive) == pytest.approx(0.1 * 1.02)
    assert next_coefficient(0.1, 0.0, 100, adaptive) == pytest.approx(0.1 * 0.98)
    assert next_coefficient(0.1, 50.0, 100, KlControlConfig(0.1)) == 0.1
    for wrong in ({"coefficient": -1.0}, {"target": 0.0}, {"target": 1.0, "horizon_samples": 0}):
        with pytest.raises(UserError):
            KlControlConfig(**wrong)


def test_log_probabilities_and_entropy_are_those_of_the_tempered_softmax() -> None:
    logits_BTV = torch.tensor([[[1.0, 2.0, -torch.inf], [0.0, 0.0, 0.0]]])
    tokens_BT = torch.tensor([[1, 2]])
    chances_BTV = (logits_BTV / 0.7).softmax(-1)
    found_BT = token_logprobs(logits_BTV, tokens_BT, 0.7)
    torch.testing.assert_close(found_BT, chances_BTV.gather(-1, tokens_BT.unsqueeze(-1)).squeeze(-1).log())
    expected_BT = torch.special.entr(chances_BTV).sum(-1)
    torch.testing.assert_close(entropy(logits_BTV, 0.7), expected_BT)
    assert token_logprobs(logits_BTV.bfloat16(), tokens_BT, 0.7).dtype == torch.float32
    with pytest.raises(UserError, match="temperature"):
        token_logprobs(logits_BTV, tokens_BT, 0.0)


def test_gradients_of_log_probabilities_and_entropy() -> None:
    logits_BTV = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    logits_BTV.requires_grad_()
    tokens_BT = torch.tensor([[0, 1, 2], [4, 3, 2]])
    assert torch.autograd.gradcheck(lambda logits: token_logprobs(logits, tokens_BT, 0.7), (logits_BTV,))
    assert torch.autograd.gradcheck(lambda logits: entropy(logits, 0.7), (logits_BTV,))
