"""From judged samples to experience, against closed forms."""

import math
import random
import statistics
from dataclasses import replace

import pytest

from plait.spec.errors import UserError
from plait.training.advantages import GaeConfig
from plait.training.batch import Sample
from plait.training.experience import Estimator, ExperienceConfig, Judged, experiences, teaching
from plait.training.rewards import ScoreConfig

PLAIN = ExperienceConfig(gae=GaeConfig(1.0, 1.0), whiten_advantages=False)


def judged(id: int, score: float, length: int = 3, **changes) -> Judged:
    sample = Sample(id, id // 2, (1, 2), tuple(range(5, 5 + length)), True, logprobs=(-1.0,) * length)
    return Judged(
        sample,
        score,
        old=(-1.0,) * length,
        reference=changes.get("reference", (-1.5,) * length),
        values=changes.get("values", (0.25,) * length),
    )


def test_rewards_less_values_are_ppos_advantages():
    """Without discount an advantage is what is still to come, less the value."""
    made, figures = experiences([judged(0, 2.0), judged(1, 1.0, length=2)], PLAIN, kl_coefficient=0.1)
    assert made[0].advantages == pytest.approx([2 - 0.15 - 0.25, 2 - 0.10 - 0.25, 2 - 0.05 - 0.25])
    assert made[1].returns == pytest.approx([1 - 0.10, 1 - 0.05])
    assert figures["score"] == 1.5
    assert figures["kl"] == pytest.approx(0.5)
    assert figures["rollout_gap"] == 0


def test_groups_are_compared_with_themselves():
    config = ExperienceConfig(estimator=Estimator.GRPO)
    made, _ = experiences([judged(0, 1.0), judged(1, 0.0), judged(2, 5.0), judged(3, 5.0)], config, 0.0)
    assert [round(each.advantages[0], 3) for each in made] == [0.707, -0.707, 0, 0]


def test_groups_that_teach_nothing_can_be_left_out():
    config = ExperienceConfig(estimator=Estimator.GRPO, drop_uninformative=True)
    rows = [judged(0, 1.0), judged(1, 0.0), judged(2, 5.0), judged(3, 5.0)]
    made, figures = experiences(rows, config, 0.0)
    assert [each.sample.id for each in made] == [0, 1]
    assert figures["kept"] == 0.5
    with pytest.raises(UserError, match="nothing can be learned"):
        experiences(rows[2:], config, 0.0)


def drawn(seed: int) -> list[Judged]:
    """Samples of up to four prompts, of different lengths, scores and divergences."""
    dice = random.Random(seed)
    rows = []
    for id in range(10):
        length = dice.randint(1, 4)
        old, reference = (tuple(dice.uniform(-3, -1) for _ in range(length)) for _ in range(2))
        sample = Sample(id, dice.randrange(4), (1,), (2,) * length, True)
        rows.append(Judged(sample, float(dice.choice((0, 1, 2))), old, reference))
    return rows


@pytest.mark.parametrize("seed", range(20))
def test_which_samples_teach_is_told_by_their_groups_one_by_one(seed):
    """The slow reference: a sample teaches if another one of its prompt has another score by the rules."""
    rows = drawn(seed)
    clipped = [min(each.score, 1.0) for each in rows]
    wanted = [
        any(
            other.sample.group == each.sample.group and theirs != mine
            for other, theirs in zip(rows, clipped, strict=True)
        )
        for each, mine in zip(rows, clipped, strict=True)
    ]
    config = ExperienceConfig(Estimator.GRPO, score=ScoreConfig(clip=1.0), drop_uninformative=True)
    assert teaching(rows, config) == wanted
    assert teaching(rows, replace(config, drop_uninformative=False)) == [True] * 10


def to_come(each: Judged, coefficient: float, gamma: float) -> list[float]:
    """Discounted rewards from each token on: the score at the end, less what the divergence costs."""
    rewards = [-coefficient * (old - ref) for old, ref in zip(each.old, each.reference, strict=True)]
    rewards[-1] += each.score
    return [
        sum(gamma ** (later - t) * rewards[later] for later in range(t, len(rewards)))
        for t in range(len(rewards))
    ]


@pytest.mark.parametrize("seed", range(20))
def test_estimators_without_a_critic_are_their_definitions_sample_by_sample(seed):
    """Slow references: RLOO leaves the sample itself out of the mean, REINFORCE++ whitens over all tokens."""
    rows, coefficient, gamma = drawn(seed), 0.1, 0.9
    made, _ = experiences(rows, ExperienceConfig(Estimator.RLOO), coefficient)
    whole = [to_come(each, coefficient, 1.0)[0] for each in rows]
    for at, (each, got) in enumerate(zip(rows, made, strict=True)):
        others = [whole[i] for i, row in enumerate(rows) if row.sample.group == each.sample.group and i != at]
        wanted = whole[at] - sum(others) / len(others) if others else 0.0
        assert got.advantages == pytest.approx([wanted] * len(each.sample.response), abs=1e-5)
    config = ExperienceConfig(Estimator.REINFORCE, gae=GaeConfig(gamma=gamma))
    made, _ = experiences(rows, config, coefficient)
    tokens = [value for each in rows for value in to_come(each, coefficient, gamma)]
    mean, deviation = statistics.fmean(tokens), statistics.stdev(tokens)
    for each, got in zip(rows, made, strict=True):
        wanted = [(value - mean) / deviation for value in to_come(each, coefficient, gamma)]
        assert got.advantages == pytest.approx(wanted, abs=1e-4)


def test_scores_follow_the_rules_before_they_are_rewards():
    config = replace(PLAIN, score=ScoreConfig(clip=1.0, missing_eos_penalty=0.5))
    cut = judged(0, 9.0)
    cut = replace(cut, sample=replace(cut.sample, finished=False), reference=(), values=(0.0,) * 3)
    made, _ = experiences([cut], config, 0.0)
    assert made[0].returns == pytest.approx([0.5] * 3)


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(UserError, match="sample 1 has a score"):
        experiences([judged(0, 1.0), judged(1, math.nan)], PLAIN, 0.0)
