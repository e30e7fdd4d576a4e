"""The predictor: gradients, closed forms, calibration; on performances that are made, with noise."""

import numpy as np
import pytest

from plait.compression.features import FeatureConfig, Features
from plait.compression.predictor import Predictor, PredictorConfig
from plait.compression.process import GaussianProcess, ProcessConfig
from plait.compression.space import Floats, Space
from plait.spec.errors import UserError
from plait.spec.policy import Unit

PRUNE, BITS = (0.75, 0.5, 0.25, 0.0), (2.0, 3.0, 4.0, 8.0)
SPACE = Space([Unit(f"u{n}", prune=PRUNE, weight_bits=BITS, act_bits=BITS) for n in range(4)])
NOISE = 0.3


def performance(z_BD: Floats) -> Floats:
    """A made accuracy in percent: quantisation noise and pruning, unequal by layer, with an interaction."""
    value_BD = SPACE.values(z_BD)
    ratio, w, a = (value_BD[:, k::3] for k in range(3))
    weight = np.array([4.0, 1.0, 2.0, 0.5])
    loss = (weight * (20 * 4.0**-w + 10 * 4.0**-a - 2 * np.log(1 - ratio))).sum(1)
    return 90 - loss - 5 * ratio[:, 0] * ratio[:, 1]


def labels(count: int, seed: int = 0) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    z_ND = SPACE.z_of(SPACE.sample(rng, count))
    return z_ND, performance(z_ND) + NOISE * rng.normal(size=count)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(SPACE, *labels(80))


@pytest.mark.parametrize(
    "config", [FeatureConfig(), FeatureConfig(physical=False), FeatureConfig(aggregates=False)]
)
def test_slopes_of_features_equal_differences(config: FeatureConfig):
    features = Features(SPACE, config)
    z_BD = np.random.default_rng(0).uniform(0.05, 0.95, (5, len(SPACE)))
    weight_F = np.random.default_rng(1).normal(size=len(features.groups))
    (found_BD,) = features.pull(z_BD, np.tile(weight_F, (1, 5, 1)))
    for gene in range(len(SPACE)):
        moved = 1e-6 * np.eye(len(SPACE))[gene]
        difference_B = (features(z_BD + moved) - features(z_BD - moved)) @ weight_F / 2e-6
        np.testing.assert_allclose(found_BD[:, gene], difference_B, rtol=1e-4, atol=1e-5)


def test_slopes_of_predictions_equal_differences(predictor: Predictor):
    z_BD = np.random.default_rng(1).uniform(0.05, 0.95, (5, len(SPACE)))
    found = predictor.slopes(z_BD)
    np.testing.assert_allclose((found.mean_B, found.std_B), predictor.predict(z_BD))
    for gene in range(len(SPACE)):
        moved = 1e-5 * np.eye(len(SPACE))[gene]
        (mean_B, std_B), (mean0_B, std0_B) = predictor.predict(z_BD + moved), predictor.predict(z_BD - moved)
        np.testing.assert_allclose(found.mean_BD[:, gene], (mean_B - mean0_B) / 2e-5, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found.std_BD[:, gene], (std_B - std0_B) / 2e-5, rtol=1e-3, atol=1e-4)


def test_left_out_predictions_are_those_of_a_process_without_the_label():
    z_ND, y_N = labels(20)
    x_NF, y_N = z_ND - z_ND.mean(0), (y_N - y_N.mean()) / y_N.std()
    process = GaussianProcess(x_NF, y_N, np.zeros(len(SPACE), dtype=np.int64), ProcessConfig())
    mean_N, std_N = process.left_out()
    whole = process.x_NF, process.y_N, process.inverse_NN, process.alpha_N
    covariance_NN = np.linalg.inv(process.inverse_NN)
    for out in range(0, 20, 5):
        rest = np.arange(20) != out
        process.x_NF, process.inverse_NN = x_NF[rest], np.linalg.inv(covariance_NN[np.ix_(rest, rest)])
        process.alpha_N = process.inverse_NN @ y_N[rest]
        np.testing.assert_allclose(
            (mean_N[out : out + 1], std_N[out : out + 1]), process.predict(x_NF[out : out + 1]), rtol=1e-6
        )
        process.x_NF, process.y_N, process.inverse_NN, process.alpha_N = whole


def test_a_linear_process_is_the_same_as_weights_and_as_covariances():
    z_ND, y_N = labels(60)
    x_NF, y_N = z_ND - z_ND.mean(0), (y_N - y_N.mean()) / y_N.std()
    kinds = np.zeros(len(SPACE), dtype=np.int64)
    process = GaussianProcess(x_NF, y_N, kinds, ProcessConfig(smooth=False))
    x_BF = np.random.default_rng(1).normal(size=(5, len(SPACE)))
    as_weights = process.predict(x_BF)
    process.weights = None
    np.testing.assert_allclose(process.predict(x_BF), as_weights, rtol=1e-6)


def test_predictions_are_good_and_intervals_hold_what_they_say(predictor: Predictor):
    z_ND, y_N = labels(400, seed=1)
    mean_N, std_N = predictor.predict(z_ND)
    assert np.square(mean_N - y_N).mean() < 0.1 * y_N.var()
    assert 0.82 <= (np.abs(mean_N - y_N) <= 1.645 * std_N).mean() <= 0.98


def test_physical_features_need_fewer_labels():
    z_ND, y_N = labels(400, seed=1)
    error = {}
    for physical in (True, False):
        view = FeatureConfig(physical=physical, aggregates=False)
        config = PredictorConfig(members=((view, ProcessConfig(smooth=False)),))
        mean_N, _ = Predictor(SPACE, *labels(60), config).predict(z_ND)
        error[physical] = np.square(mean_N - y_N).mean()
    assert error[True] < 0.7 * error[False]


def test_deviation_is_larger_where_nothing_was_measured(predictor: Predictor):
    (_, at_N), (_, away_N) = (predictor.predict(labels(80, seed)[0]) for seed in (0, 1))
    assert away_N.mean() > at_N.mean()


def test_weights_are_shares(predictor: Predictor):
    assert predictor.weight_M.sum() == pytest.approx(1)
    assert (predictor.weight_M >= 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_labels_that_are_no_numbers_are_refused(bad: float):
    z_ND, y_N = labels(20)
    y_N[3] = bad
    with pytest.raises(UserError, match="all of them numbers"):
        Predictor(SPACE, z_ND, y_N)
    with pytest.raises(UserError, match="at least 8"):
        Predictor(SPACE, *labels(7))
