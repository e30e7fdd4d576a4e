"""Learners recover what made their measurements, are not led astray by a wild one, and mix by inner folds."""

from dataclasses import replace

import numpy as np
import pytest

from plait.cost.boosting import Boosted, BoostedConfig
from plait.cost.decoders import ACCELERATORS, DECODERS
from plait.cost.deployment import Deployment, Phase, features
from plait.cost.kernel import Kernel, KernelConfig
from plait.cost.learned import Learned, LearnedConfig, Learner, kind
from plait.spec.errors import UserError

USUAL = Deployment(
    DECODERS["DeepSeek-V3"], ACCELERATORS["h200_sxm"], "fp8", "trtllm", 100.0,
    Phase(2, tp=8, ep=8), Phase(1, dp=8, ep=8), True, 8192, 1024, 64,
)  # fmt: skip
SMALL = LearnedConfig(
    (Learner(BoostedConfig(trees=80, rate=0.1)), Learner(KernelConfig(0.1, 0.003), named=True, own=True)),
    bags=1,
    folds=2,
)


def surface(rng, rows):
    table = rng.uniform(-2, 2, (rows, 4))
    return table, np.sin(table[:, 0]) + table[:, 1] * (table[:, 2] > 0)


def test_trees_and_kernels_learn_a_surface():
    rng = np.random.default_rng(0)
    (table, target), (fresh, truth) = surface(rng, 900), surface(rng, 300)
    trees = Boosted.fit(table, target, BoostedConfig(rate=0.1), np.random.default_rng(1))
    likeness = Kernel.fit(table, target, KernelConfig(0.5, 0.01))
    spread = np.abs(truth - np.median(target)).mean()
    assert np.abs(trees.predict(fresh) - truth).mean() < 0.25 * spread
    assert np.abs(likeness.predict(fresh) - truth).mean() < 0.25 * spread


def test_a_wild_measurement_moves_neither_far():
    rng = np.random.default_rng(3)
    table, target = surface(rng, 300)
    wild = target.copy()
    wild[7] += 1e6
    for fit in (
        lambda y: Boosted.fit(table, y, BoostedConfig(trees=60), np.random.default_rng(0)),
        lambda y: Kernel.fit(table, y, KernelConfig(0.5, 0.1)),
    ):
        assert np.median(np.abs(fit(wild).predict(table) - fit(target).predict(table))) < 0.1


def test_leaning_trees_err_to_the_low_side():
    rng = np.random.default_rng(5)
    table = rng.uniform(0, 1, (600, 2))
    target = rng.normal(0, 0.8, 600)
    means = [
        Boosted.fit(table, target, BoostedConfig(trees=60, depth=3, lean=lean), np.random.default_rng(0))
        .predict(table)
        .mean()
        for lean in (0.0, 1.0)
    ]
    assert means[1] < means[0] - 0.1


def test_the_same_seed_grows_the_same_trees():
    table, target = surface(np.random.default_rng(2), 100)
    first, second = (
        Boosted.fit(table, target, BoostedConfig(trees=20), np.random.default_rng(4)).predict(table)
        for _ in range(2)
    )
    assert (first == second).all()
    with pytest.raises(UserError, match="too few"):
        Boosted.fit(table[:3], target[:3], BoostedConfig(), np.random.default_rng(0))


def test_features_have_one_set_of_names_and_follow_physics():
    other = replace(USUAL, model=DECODERS["Qwen3-32B"], precision="bf16", disaggregated=False)
    assert features(other).keys() == features(USUAL).keys()
    assert all(np.isfinite(list(features(each).values())).all() for each in (USUAL, other))
    busy, fast = replace(USUAL, in_flight=1024), replace(USUAL, device=ACCELERATORS["gb200"])
    for name in ("decode_step", "all_at_once", "kv1_used", "slow_wait"):
        assert features(busy)[name] > features(USUAL)[name]
    assert features(fast)["decode_step"] < features(USUAL)["decode_step"]
    with pytest.raises(UserError, match="bf16"):
        features(replace(USUAL, precision="fp16"))


def test_saturated_prefill_holds_decoding_requests_back():
    """Ten times the requests do not decode ten times as many where prompts wait."""
    more = replace(USUAL, in_flight=6400)
    grown = np.exp(features(more)["slow_batch"] - features(USUAL)["slow_batch"])
    assert grown < 30


def deployments():
    return [
        replace(USUAL, in_flight=count, prompt_tokens=prompt, disaggregated=split, device=device)
        for count in (1, 2, 4, 8, 16, 32, 64, 128, 256)
        for prompt in (512, 1024, 2048, 8192)
        for split in (True, False)
        for device in (ACCELERATORS["h100_sxm"], ACCELERATORS["gb200"])
    ]


def test_a_law_is_learned_and_carried_to_deployments_that_were_not_measured():
    served = deployments()
    seconds = np.array([1.3 * np.exp(features(each)["decode_step"]) ** 0.9 for each in served])
    rng = np.random.default_rng(0)
    out = rng.random(len(served)) < 0.25
    known = [each for each, left in zip(served, out, strict=True) if not left]
    groups = np.array([each.prompt_tokens for each in known])
    learned = Learned.fit(known, seconds[~out], groups, ("decode_step",), SMALL, rng)
    found = learned.seconds([each for each, left in zip(served, out, strict=True) if left])
    assert np.abs(found / seconds[out] - 1).mean() < 0.08
    assert set(learned.mixtures) == {"aggregated", "disaggregated"}
    assert all(sum(each.weights) == pytest.approx(1) for each in learned.mixtures.values())
    unknown = replace(USUAL, workers_known=False)
    assert kind(unknown) == "layout only"
    assert learned.seconds([unknown])[0] > 0


def test_latencies_must_be_positive():
    served = deployments()[:20]
    with pytest.raises(UserError, match="above 0"):
        Learned.fit(served, np.zeros(20), np.arange(20), ("decode_step",), SMALL, np.random.default_rng(0))
