"""The optimiser and what it is held against, on a made performance whose best is found by trying."""

import itertools

import numpy as np
import pytest

from plait.compression.baselines import (
    additive_gains,
    evolution,
    knapsack,
    random_near,
    random_search,
    uniform,
)
from plait.compression.best import BestConfig, best_policy
from plait.compression.complexity import Layer, bops, table, weight_bytes
from plait.compression.evolution import EvolutionConfig
from plait.compression.optimiser import Budget, OptimiserConfig, ascend, check, shares, shrink
from plait.compression.pareto import order, pareto
from plait.compression.predictor import Predictor, Slopes
from plait.compression.rounding import repair, settle
from plait.compression.space import Floats, Ints, Space
from plait.spec.errors import UserError
from plait.spec.policy import Unit

PRUNE, BITS = (0.75, 0.5, 0.25, 0.0), (2.0, 4.0, 8.0)
SPACE = Space([Unit(f"u{n}", prune=PRUNE, weight_bits=BITS, act_bits=BITS) for n in range(3)])
LAYERS = [
    Layer(f"u{n}", 10**8 * (n + 1), 10**4 * (3 - n), 0, 0, 64, unit=f"u{n}", cut_by=f"u{n}", fed_by=fed)
    for n, fed in enumerate([None, "u0", "u1"])
]
WORK, SIZE = bops(SPACE, LAYERS), weight_bytes(SPACE, LAYERS)


class Made:
    """Known everywhere, with gradients: what a predictor would say that has learnt all."""

    spread = 3.0

    def predict(self, z_BD: Floats) -> tuple[Floats, Floats]:
        found = self.slopes(z_BD)
        return found.mean_B, found.std_B

    def slopes(self, z_BD: Floats) -> Slopes:
        value_BD = SPACE.values(z_BD)
        weight_D = np.repeat([4.0, 1.0, 2.0], 3)
        is_bits = np.arange(9) % 3 > 0
        term_BD = np.where(is_bits, -20 * 4.0**-value_BD, 2 * np.log(1 - np.where(is_bits, 0, value_BD)))
        slope_BD = np.where(
            is_bits, 20 * np.log(4) * 4.0**-value_BD, -2 / (1 - np.where(is_bits, 0, value_BD))
        )
        mean_BD = weight_D * slope_BD * SPACE.span_D
        still = np.zeros_like(z_BD)
        return Slopes((weight_D * term_BD).sum(1), np.full(len(z_BD), 0.1), mean_BD, still)


MADE = Made()


def score(index_ND: Ints) -> Floats:
    return MADE.predict(SPACE.z_of(index_ND))[0]


def everything() -> Ints:
    """All policies: 4 x 3 x 3 levels to the third."""
    return np.array(list(itertools.product(*(range(count) for count in SPACE.count_D))))


ALL = everything()
BUDGETS = [[Budget(WORK, 5.0)], [Budget(WORK, 2.0)], [Budget(WORK, 4.0), Budget(SIZE, 20_000.0)]]


def best_of_all(budgets: list[Budget]) -> float:
    fits = (shares(budgets, SPACE.z_of(ALL)) <= 1).all(0)
    return float(score(ALL[fits]).max())


@pytest.mark.parametrize("budgets", BUDGETS, ids=["loose", "tight", "two"])
def test_it_finds_what_trying_all_finds(budgets: list[Budget]):
    thorough = BestConfig(OptimiserConfig(starts=16), finalists=16)
    found = best_policy(SPACE, MADE, budgets, thorough, np.random.default_rng(0))
    assert (shares(budgets, SPACE.z_of(found.index_ND)) <= 1).all()
    assert found.mean_N[0] >= best_of_all(budgets) - 0.02 * MADE.spread
    others = {
        "uniform": uniform(SPACE, score, budgets)[1],
        "random": random_search(SPACE, score, budgets, 100, np.random.default_rng(0))[1],
    }
    assert all(value <= found.mean_N[0] + 1e-9 for value in others.values()), others


@pytest.mark.parametrize("budgets", BUDGETS, ids=["loose", "tight", "two"])
@pytest.mark.parametrize(
    "config", [OptimiserConfig(), OptimiserConfig(barrier=False), OptimiserConfig(momentum=0.0)]
)
def test_every_iterate_is_feasible(budgets: list[Budget], config: OptimiserConfig):
    start_BD = shrink(budgets, np.random.default_rng(0).uniform(0, 1, (16, len(SPACE))))
    assert shares(budgets, start_BD).max() < 1
    done = ascend(SPACE, MADE, budgets, start_BD, config)
    assert done.closest < 1
    assert (MADE.predict(done.z_BD)[0] >= MADE.predict(start_BD)[0]).all()
    assert ((done.z_BD >= 0) & (done.z_BD <= 1)).all()


def test_a_barrier_is_better_than_stopping_at_the_limit():
    budgets = BUDGETS[1]
    ends = {}
    for barrier in (True, False):
        start_BD = shrink(budgets, np.random.default_rng(1).uniform(0, 1, (16, len(SPACE))))
        told = OptimiserConfig(barrier=barrier, kappa=0.0)
        ends[barrier] = MADE.predict(ascend(SPACE, MADE, budgets, start_BD, told).z_BD)[0].mean()
    assert ends[True] > ends[False]


def test_budgets_nobody_can_meet_are_refused_with_the_nearest_one():
    (least,), _ = WORK(np.zeros((1, len(SPACE))))
    with pytest.raises(UserError, match=f"no policy has bops below 0.001 GBOPs: .* has {least:.4g}"):
        check(SPACE, [Budget(WORK, 0.001)])
    for search in (
        lambda: best_policy(SPACE, MADE, [Budget(WORK, 0.001)], BestConfig(), np.random.default_rng(0)),
        lambda: uniform(SPACE, score, [Budget(WORK, 0.001)]),
        lambda: random_search(SPACE, score, [Budget(WORK, 0.001)], 10, np.random.default_rng(0)),
    ):
        with pytest.raises(UserError, match="no policy has bops"):
            search()
    just = [Budget(WORK, float(least) * 1.0001)]
    assert best_policy(SPACE, MADE, just, BestConfig(), np.random.default_rng(0)).index_ND.max() == 0


def test_repair_reaches_every_budget_and_settling_loses_nothing():
    rng = np.random.default_rng(2)
    for budgets in BUDGETS:
        for z_D in rng.uniform(0, 1, (10, len(SPACE))):
            index_D = repair(SPACE, score, budgets, SPACE.index_of(z_D))
            assert (shares(budgets, SPACE.z_of(index_D[None])) <= 1).all()
            settled_D, value = settle(SPACE, score, budgets, z_D)
            assert (shares(budgets, SPACE.z_of(settled_D[None])) <= 1).all()
            assert value >= score(index_D[None])[0] - 1e-9


def test_the_programme_is_exact_where_gains_and_costs_add_up():
    rng = np.random.default_rng(3)
    for _ in range(5):
        rise = rng.integers(1, 20, (len(SPACE), 4))
        cost = table("bytes", "bytes", SPACE, lambda g, v, rise=rise: float(rise[g, :v].sum()), base=7.0)
        gain_DV = additive_gains(SPACE, score, SPACE.count_D // 2)
        budget = Budget(cost, 60.0)
        found_D = knapsack(SPACE, gain_DV, budget, cells=53)  # a cell is one unit of cost
        fits_ND = ALL[cost(SPACE.z_of(ALL))[0] <= 60]
        assert cost(SPACE.z_of(found_D[None]))[0][0] <= 60
        assert score(found_D[None])[0] == pytest.approx(score(fits_ND).max())
    with pytest.raises(UserError, match="needs an additive cost"):
        knapsack(SPACE, gain_DV, Budget(WORK, 1.0))
    with pytest.raises(UserError, match="no policy has bytes below 7"):
        knapsack(SPACE, gain_DV, Budget(cost, 7.0))


def test_evolution_comes_near_and_stays_feasible():
    config = EvolutionConfig(population=50, generations=30)
    for budgets in BUDGETS:
        index_D, value = evolution(SPACE, score, budgets, config, np.random.default_rng(0))
        assert (shares(budgets, SPACE.z_of(index_D[None])) <= 1).all()
        assert value >= best_of_all(budgets) - 0.1 * MADE.spread


def test_random_policies_lie_near_the_limit():
    for budgets in BUDGETS:
        used_KN = shares(budgets, SPACE.z_of(random_near(SPACE, budgets, 50, np.random.default_rng(0))))
        assert (used_KN <= 1).all()
        assert np.median(used_KN.max(0)) > 0.85


def test_fronts_hold_nobody_that_another_beats():
    index_ND, gain_N, cost_N = pareto(
        SPACE, score, WORK, EvolutionConfig(population=60, generations=30), np.random.default_rng(0)
    )
    assert len(index_ND) > 10
    assert (np.diff(cost_N) > 0).all()
    assert (np.diff(gain_N) > 0).all()
    rng = np.random.default_rng(1)
    gain_N, cost_N = rng.random(40), rng.random(40)
    first = order(gain_N, cost_N)[0]
    assert not ((gain_N > gain_N[first]) & (cost_N < cost_N[first])).any()
    assert sorted(order(gain_N, cost_N)) == list(range(40))


def test_a_trust_region_keeps_to_what_is_known():
    rng = np.random.default_rng(0)
    index_ND = np.minimum(SPACE.sample(rng, 60), 1)  # nothing was measured above the second level
    z_ND = SPACE.z_of(index_ND)
    predictor = Predictor(SPACE, z_ND, score(index_ND) + 0.05 * rng.normal(size=60))
    budgets = [Budget(WORK, 20.0)]
    starts_BD = shrink(budgets, z_ND[:16])
    deviation = {}
    for trust in (None, 0.1):
        done = ascend(SPACE, predictor, budgets, starts_BD, OptimiserConfig(trust=trust, kappa=0.0))
        deviation[trust] = predictor.predict(done.z_BD)[1].mean()
    assert deviation[0.1] < deviation[None]
