"""What is measured next, and HAQ's search."""

import numpy as np
import pytest

from plait.compression.complexity import Layer, bops
from plait.compression.evolution import EvolutionConfig, fit_to
from plait.compression.optimiser import Budget, shares
from plait.compression.predictor import Predictor, PredictorConfig
from plait.compression.reinforce import ReinforceConfig, reinforce
from plait.compression.selection import Acquisition, SelectionConfig, pick, seed_design, select
from plait.compression.space import Floats, Ints, Space
from plait.spec.errors import UserError
from plait.spec.policy import Unit

PRUNE, BITS = (0.75, 0.5, 0.25, 0.0), (2.0, 3.0, 4.0, 8.0)
SPACE = Space([Unit(f"u{n}", prune=PRUNE, weight_bits=BITS, act_bits=BITS) for n in range(4)])
LAYERS = [Layer(f"u{n}", 10**8, 0, 0, 0, 64, unit=f"u{n}", cut_by=f"u{n}") for n in range(4)]
BUDGET = [Budget(bops(SPACE, LAYERS), 5.0)]
SHORT = EvolutionConfig(population=40, generations=8)


def performance(index_ND: Ints) -> Floats:
    value_ND = SPACE.values(SPACE.z_of(index_ND))
    ratio, w, a = (value_ND[:, k::3] for k in range(3))
    return 90 - ((1 + np.arange(4)) * (20 * (4.0**-w + 4.0**-a) - 2 * np.log(1 - ratio))).sum(1)


def learnt(count: int, seed: int = 0) -> tuple[Predictor, Ints]:
    rng = np.random.default_rng(seed)
    index_ND = SPACE.sample(rng, count)
    return Predictor(
        SPACE, SPACE.z_of(index_ND), performance(index_ND) + 0.2 * rng.normal(size=count)
    ), index_ND


@pytest.mark.parametrize("acquisition", list(Acquisition))
def test_batches_are_new_feasible_and_not_alike(acquisition: Acquisition):
    predictor, known_ND = learnt(30)
    rng = np.random.default_rng(1)
    fit = fit_to(SPACE, BUDGET, rng)
    config = SelectionConfig(acquisition=acquisition, evolution=SHORT, interest=60)
    batch_ND = select(predictor, 6, fit, config, rng, known_ND)
    rows = set(map(tuple, batch_ND))
    assert len(rows) == 6
    assert not rows & set(map(tuple, known_ND))
    assert (shares(BUDGET, SPACE.z_of(batch_ND)) <= 1).all()


def test_reduction_lowers_variance_more_than_chance_does():
    predictor, known_ND = learnt(20)
    rng = np.random.default_rng(2)
    pool_ND = SPACE.sample(rng, 200)
    left = {}
    for kind in (Acquisition.REDUCTION, Acquisition.RANDOM):
        config = SelectionConfig(acquisition=kind)
        found = []
        for _ in range(5):
            more_ND = np.concatenate([known_ND, pick(predictor, pool_ND, 10, pool_ND, config, rng)])
            z_ND = SPACE.z_of(more_ND)
            # Scales stay those of the fit: what is compared is where labels lie.
            found.append(posterior_variance(predictor, z_ND, SPACE.z_of(pool_ND)))
        left[kind] = np.mean(found)
    assert left[Acquisition.REDUCTION] < 0.97 * left[Acquisition.RANDOM]


def posterior_variance(predictor: Predictor, known_ND: Floats, pool_ND: Floats) -> float:
    """Mean variance over a pool, were these labels known as well."""
    cross_PN, _ = predictor.covariance(pool_ND, known_ND)
    square_NN, own_N = predictor.covariance(known_ND, known_ND)
    noise_N = own_N - np.diagonal(square_NN)
    _, own_P = predictor.covariance(pool_ND[:1], pool_ND)
    return float((own_P - (cross_PN @ np.linalg.inv(square_NN + np.diag(noise_N)) * cross_PN).sum(1)).mean())


def test_a_design_has_extremes_uniform_and_single_changes():
    rng = np.random.default_rng(0)
    design_ND = seed_design(SPACE, 40, lambda index_ND: index_ND, rng)
    rows = set(map(tuple, design_ND))
    assert len(rows) == len(design_ND) == 40
    assert {tuple(SPACE.count_D * 0), tuple(SPACE.count_D - 1)} <= rows
    distance_N = (design_ND != SPACE.count_D - 1).sum(1)
    assert (distance_N == 1).sum() >= 8
    fitted_ND = seed_design(SPACE, 40, fit_to(SPACE, BUDGET, rng), rng)
    assert (shares(BUDGET, SPACE.z_of(fitted_ND)) <= 1).all()


def test_a_space_without_other_policies_is_told():
    tiny = Space([Unit("u", prune=PRUNE, weight_bits=BITS)])
    index_ND = np.array([[r, w] for r in range(4) for w in range(4)])
    values_N = index_ND.sum(1) + 0.1 * np.random.default_rng(0).normal(size=16)
    predictor = Predictor(tiny, tiny.z_of(index_ND), values_N, PredictorConfig())
    with pytest.raises(UserError, match="only 0 policies are left"):
        select(
            predictor, 1, lambda x: x, SelectionConfig(evolution=SHORT), np.random.default_rng(0), index_ND
        )


def test_reinforcement_holds_its_budget_and_learns():
    """Rewards are exact here; later episodes are better than the random ones at the start."""
    traits_DT = np.array(
        [[gene.knob == "prune", number] for number, gene in enumerate(SPACE.genes)], dtype=float
    )
    better = []
    for seed in range(3):
        config = ReinforceConfig(episodes=60, warmup=15, actor_rate=1e-3, noise=0.2)
        trail = reinforce(
            SPACE, lambda index_D: float(performance(index_D[None])[0]), BUDGET, traits_DT, config, seed
        )
        index_ND, score_N = np.array([row for row, _ in trail]), np.array([score for _, score in trail])
        assert len(trail) == 60
        assert (shares(BUDGET, SPACE.z_of(index_ND)) <= 1).all()
        np.testing.assert_allclose(score_N, performance(index_ND))
        better.append(score_N[45:].mean() - score_N[:15].mean())
    assert np.mean(better) > 0
