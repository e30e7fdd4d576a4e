"""The policy for a budget in well under a second: barrier ascent beside what others do, on one surrogate.

    python bench/policy_search.py [--quick]

The surrogate is a predictor fitted to SeerNet's 400 measured ResNet-20 policies and then frozen; accuracies
here are its predictions, no network is trained. Ratios may be any sixteenth from 1/4 to 3/4, bits 2 to 5; the
BOPs are those of CIFAR-10's ResNet-20, stem at 8 x 8 bits. All search the same space for the same score.
"""

import time
from collections.abc import Callable, Sequence

import claim
import numpy as np
from seernet_labels import resnet20, resnet20_units

from plait.compression.baselines import additive_gains, evolution, knapsack, random_search, uniform
from plait.compression.best import BestConfig, best_policy
from plait.compression.complexity import Layer, bops, table
from plait.compression.evolution import EvolutionConfig
from plait.compression.optimiser import Budget, OptimiserConfig, shares
from plait.compression.pareto import pareto
from plait.compression.predictor import Predictor
from plait.compression.rounding import Score
from plait.compression.space import Floats, Ints, Space

BUDGETS = (0.07, 0.10, 0.15, 0.25)
"""GBOPs."""
PLAIN = BestConfig(OptimiserConfig(kappa=0.0))
"""The score is the mean alone, as it is for everybody else here."""


def layers() -> list[Layer]:
    """ResNet-20's convolutions at 32 x 32; the inputs of one are the outputs of the one before."""
    macs = [9 * 16 * 16 * 1024] * 6 + [9 * 16 * 32 * 256] + [9 * 32 * 32 * 256] * 5
    macs += [9 * 32 * 64 * 64] + [9 * 64 * 64 * 64] * 5
    stem = Layer("stem", 9 * 3 * 16 * 1024, 432, 3072, 16384, 16, fixed_bits=8.0)
    named = [(f"conv{n}", f"conv{n - 1}" if n else None) for n in range(18)]
    return [stem] + [
        Layer(name, work, 0, 0, 0, 0, unit=name, cut_by=name, fed_by=fed)
        for (name, fed), work in zip(named, macs, strict=True)
    ]


class Surrogate:
    """The frozen predictor in the finer space of the search; it counts what it is asked."""

    def __init__(self) -> None:
        labels = resnet20()
        self.space = Space(*resnet20_units(tuple(n / 16 for n in range(12, 3, -1))))
        # Both spaces run from 3/4 to 1/4 and from 2 to 5, so z means the same in both.
        self.predictor = Predictor(labels.space, labels.z_ND, labels.accuracy_N)
        self.cost = bops(self.space, layers())
        self.known_ND = self.space.index_of(labels.z_ND)
        self.calls = 0

    def score(self, index_ND: Ints) -> Floats:
        """Predicted accuracies, percent."""
        self.calls += len(index_ND)
        return self.predictor.predict(self.space.z_of(index_ND))[0]


def timed(call: Callable[[], float]) -> tuple[float, float]:
    """What it returns, and the seconds that it took."""
    begin = time.perf_counter()
    value = call()
    return value, time.perf_counter() - begin


def by_gradient(world: Surrogate, budget: Budget, seed: int) -> tuple[float, float]:
    """Its accuracy and the largest share of the limit that any iterate used."""
    rng = np.random.default_rng(seed)
    found = best_policy(world.space, world.predictor, [budget], PLAIN, rng, world.known_ND)
    assert shares([budget], world.space.z_of(found.index_ND)).max() <= 1
    return float(found.mean_N[0]), found.closest


def at_budget(world: Surrogate, limit: float, seeds: Sequence[int]) -> list[claim.Claim]:
    """All lines of one budget."""
    budget = Budget(world.cost, limit)
    ours = [timed(lambda seed=seed: by_gradient(world, budget, seed)) for seed in seeds]
    values, spent_s = [value for (value, _), _ in ours], [taken for _, taken in ours]
    rngs = [np.random.default_rng(seed) for seed in seeds]
    breed = EvolutionConfig(population=100, generations=99)
    theirs = [
        timed(lambda rng=rng: evolution(world.space, world.score, [budget], breed, rng)[1]) for rng in rngs
    ]
    means = [round(float(np.mean(found)), 6) for found in (values, [value for value, _ in theirs])]
    ratio = float(np.median(spent_s) / np.median([taken for _, taken in theirs]))
    told = f"{limit:g} GBOPs:"
    rest = others(world, budget, seeds[0])
    return [
        claim.at_least(f"{told} accuracy, mean of seeds, beside evolution's", *means),
        claim.at_most(f"{told} spread over {len(seeds)} seeds, points", max(values) - min(values), 0.02),
        claim.at_most(f"{told} seconds over evolution's", ratio, 1 / 3),
        claim.at_most(f"{told} seconds, slowest", max(spent_s), 1.0),
        claim.at_most(f"{told} closest iterate to the limit", max(near for (_, near), _ in ours), 1.0),
        *(claim.reported(f"{told} {name}", value, (value, value)) for name, value in rest),
    ]


def others(world: Surrogate, budget: Budget, seed: int) -> list[tuple[str, float]]:
    """Accuracies of the other baselines."""
    rng = np.random.default_rng(seed)
    score: Score = world.score
    hard_stop = OptimiserConfig(kappa=0.0, barrier=False)
    stopped = best_policy(world.space, world.predictor, [budget], BestConfig(hard_stop), rng)
    _, gain_N, cost_N = pareto(
        world.space, score, world.cost, EvolutionConfig(population=100, generations=99), rng
    )
    ours = best_policy(world.space, world.predictor, [budget], PLAIN, rng)
    return [
        ("uniform", uniform(world.space, score, [budget])[1]),
        ("random, 2,000", random_search(world.space, score, [budget], 2000, rng)[1]),
        ("NSGA-II, 10,000 calls", float(gain_N[cost_N <= budget.limit].max(initial=0.0))),
        ("dynamic programme on single changes", by_programme(world, budget)),
        ("ascent without a barrier", float(stopped.mean_N[0])),
        (
            "ascent, before rounding",
            ours.continuous,
        ),
    ]


def by_programme(world: Surrogate, budget: Budget) -> float:
    """Gains and costs of single changes from the best uniform policy, added up; scaled until it fits."""
    base_D, _ = uniform(world.space, world.score, [budget])
    gain_DV = additive_gains(world.space, world.score, base_D)
    cost_DV = additive_gains(world.space, lambda index_ND: world.cost(world.space.z_of(index_ND))[0], base_D)
    whole = float(world.cost(world.space.z_of(base_D[None]))[0][0])
    lowest = float(cost_DV[:, 0].sum())
    additive = table("additive", "GBOPs", world.space, lambda g, v: cost_DV[g, v] - cost_DV[g, 0], 0.0)
    for room in np.linspace(1.0, 0.0, 101):  # added costs are not the cost: ask for less until it is met
        limit = (budget.limit - whole - lowest) * room
        if limit > 0:
            index_D = knapsack(world.space, gain_DV, Budget(additive, limit))
            if world.cost(world.space.z_of(index_D[None]))[0][0] <= budget.limit:
                return float(world.score(index_D[None])[0])
    return float(world.score(base_D[None])[0])


def sweep_s(world: Surrogate) -> float:
    """Seconds for 20 budgets, one after another."""
    limits = np.geomspace(0.06, 0.4, 20)
    return timed(lambda: max(by_gradient(world, Budget(world.cost, limit), 0)[1] for limit in limits))[1]


def main() -> None:
    """Measure all lines."""
    options = claim.arguments(__doc__)
    world, fit_s = (lambda begin: (Surrogate(), time.perf_counter() - begin))(time.perf_counter())
    seeds = range(options.seed, options.seed + (2 if options.quick else 5))
    budgets = BUDGETS[1:2] if options.quick else BUDGETS
    parts = [line for limit in budgets for line in at_budget(world, limit, seeds)]
    parts.append(claim.reported("seconds to fit the predictor", fit_s, (fit_s, fit_s)))
    if not options.quick:
        taken_s = sweep_s(world)
        parts.append(claim.at_most("seconds for 20 budgets", taken_s, 5.0))
    claim.finish("policy_search", claim.together("policies for budgets in seconds", parts), options)


if __name__ == "__main__":
    main()
