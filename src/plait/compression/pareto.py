"""`pareto`: NSGA-II (Deb et al., 2002), policies between which neither score nor cost decides.

Legend: D genes, P population, N policies.
"""

import numpy as np

from plait.compression.complexity import Cost
from plait.compression.evolution import EvolutionConfig, breed
from plait.compression.rounding import Score
from plait.compression.space import Floats, Ints, Space


def pareto(
    space: Space, score: Score, cost: Cost, config: EvolutionConfig, rng: np.random.Generator
) -> tuple[Ints, Floats, Floats]:
    """The front that was found, its scores and its costs, cheapest first."""

    def both(index_ND: Ints) -> tuple[Floats, Floats]:
        return score(index_ND), cost(space.z_of(index_ND))[0]

    population_PD = np.concatenate([space.uniform(), space.sample(rng, config.population)])
    gain_P, cost_P = both(population_PD)
    for _ in range(config.generations):
        standing_P = -order(gain_P, cost_P).argsort().astype(np.float64)
        child_PD = breed(space, population_PD, standing_P, config, rng)
        joined_ND = np.concatenate([population_PD, child_PD])
        gain_N, cost_N = (np.concatenate(pair) for pair in zip((gain_P, cost_P), both(child_PD), strict=True))
        # Twins would crowd out others and add nothing.
        _, first_N = np.unique(joined_ND, axis=0, return_index=True)
        joined_ND, gain_N, cost_N = joined_ND[first_N], gain_N[first_N], cost_N[first_N]
        kept_P = order(gain_N, cost_N)[: config.population]
        population_PD, gain_P, cost_P = joined_ND[kept_P], gain_N[kept_P], cost_N[kept_P]
    best_N = undominated(gain_P, cost_P)
    best_N = best_N[np.argsort(cost_P[best_N], kind="stable")]
    return population_PD[best_N], gain_P[best_N], cost_P[best_N]


def undominated(gain_N: Floats, cost_N: Floats) -> Ints:
    """Numbers of those that no other beats in both, cheapest first."""
    by_cost_N = np.lexsort((-gain_N, cost_N))
    best_N = np.maximum.accumulate(gain_N[by_cost_N])
    ahead_N = np.concatenate([[True], gain_N[by_cost_N][1:] > best_N[:-1]])
    return by_cost_N[ahead_N]


def order(gain_N: Floats, cost_N: Floats) -> Ints:
    """Front after front; in each those first that stand far from their neighbours."""
    left_N = np.arange(len(gain_N))
    ordered = []
    while len(left_N):
        front = undominated(gain_N[left_N], cost_N[left_N])
        members_N = left_N[front]
        ordered.append(members_N[np.argsort(-_distance(gain_N[members_N], cost_N[members_N]), kind="stable")])
        left_N = np.delete(left_N, front)
    return np.concatenate(ordered)


def _distance(gain_N: Floats, cost_N: Floats) -> Floats:
    """Of each on a front, cheapest first, to the two beside it; both ends are infinitely far."""
    far_N = np.full(len(gain_N), np.inf)
    if len(gain_N) > 2:
        scales = [max(float(np.ptp(part_N)), 1e-12) for part_N in (gain_N, cost_N)]
        apart = [np.abs(p[2:] - p[:-2]) / s for p, s in zip((gain_N, cost_N), scales, strict=True)]
        far_N[1:-1] = apart[0] + apart[1]
    return far_N
