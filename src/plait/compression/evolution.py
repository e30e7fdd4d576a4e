"""`evolve`: policies bred by tournament, crossover and mutation, for whatever scores them in batches.

Legend: D genes, P population, N policies, K budgets.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from plait.compression.optimiser import Budget, shares
from plait.compression.rounding import Score
from plait.compression.space import Floats, Ints, Space

Fit = Callable[[Ints], Ints]
"""Policies made feasible."""


@dataclass(frozen=True, slots=True)
class EvolutionConfig:
    """How it breeds."""

    population: int = 100
    generations: int = 100
    tournament: int = 3
    """A parent is the best of so many."""
    elite: int = 16
    """The best that live on as they are."""
    mutation: float = 0.05
    """Least chance that a gene changes; one gene of each policy is the floor."""
    near: float = 0.7
    """Share of mutations that go to a level beside; the others go to any."""


def evolve(
    space: Space, score: Score, fit: Fit, config: EvolutionConfig, rng: np.random.Generator, first_PD: Ints
) -> tuple[Ints, Floats]:
    """The last population and its scores, best first. `first` is made feasible before it is scored."""
    population_PD = fit(first_PD)
    score_P = score(population_PD)
    for _ in range(config.generations):
        child_ND = fit(breed(space, population_PD, score_P, config, rng))
        joined_ND = np.concatenate([population_PD[np.argsort(-score_P)[: config.elite]], child_ND])
        joined_N = np.concatenate([np.sort(score_P)[::-1][: config.elite], score(child_ND)])
        order_P = np.argsort(-joined_N, kind="stable")[: config.population]
        population_PD, score_P = joined_ND[order_P], joined_N[order_P]
    return population_PD, score_P


def breed(
    space: Space, population_PD: Ints, score_P: Floats, config: EvolutionConfig, rng: np.random.Generator
) -> Ints:
    """One child for each place of the population, by tournament, even crossover and mutation."""
    shape = (config.population, len(space))
    drawn = rng.integers(0, len(population_PD), size=(2, config.population, config.tournament))
    best = np.take_along_axis(drawn, score_P[drawn].argmax(-1)[..., None], -1)[..., 0]
    child_PD = np.where(rng.random(shape) < 0.5, population_PD[best[0]], population_PD[best[1]])
    changes_PD = rng.random(shape) < max(1 / len(space), config.mutation)
    beside_PD = np.clip(child_PD + rng.choice([-1, 1], size=shape), 0, space.count_D - 1)
    anywhere_PD = rng.integers(0, space.count_D, size=shape)
    other_PD = np.where(rng.random(shape) < config.near, beside_PD, anywhere_PD)
    return np.where(changes_PD, other_PD, child_PD)


def fit_to(space: Space, budgets: Sequence[Budget], rng: np.random.Generator) -> Fit:
    """Lowers genes drawn at random, one level at a time, where a budget is overstepped.

    It ends, for the most compressed policy is taken to be feasible.
    """

    def fit(index_ND: Ints) -> Ints:
        fitted_ND = index_ND.copy()
        over_N = np.arange(len(index_ND))
        while True:
            over_N = over_N[(shares(budgets, space.z_of(fitted_ND[over_N])) > 1).any(0)]
            if not len(over_N):
                return fitted_ND
            part_ND = fitted_ND[over_N]
            gene_N = (rng.random(part_ND.shape) * (part_ND > 0)).argmax(1)
            part_ND[np.arange(len(over_N)), gene_N] -= 1
            fitted_ND[over_N] = part_ND

    return fit
