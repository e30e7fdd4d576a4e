"""Which policies to measure next: those that teach the predictor most.

Acquisitions: `reduction` is by how much one more label would lower the predictor's variance over the policies
of interest (Cohn's criterion, closed-form for Gaussian processes); `deviation` is the predictor's own;
`neighbour` is SeerNet's: how much predictions of neighbours differ; `random` is none.
Legend: D genes, N candidates, R policies of interest.
"""

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from plait.compression.evolution import EvolutionConfig, Fit, evolve
from plait.compression.predictor import Predictor
from plait.compression.space import Floats, Ints, Space
from plait.spec.errors import UserError


class Acquisition(StrEnum):
    """What makes a policy worth measuring."""

    REDUCTION = "reduction"
    DEVIATION = "deviation"
    NEIGHBOUR = "neighbour"
    RANDOM = "random"


@dataclass(frozen=True, slots=True)
class SelectionConfig:
    """How policies are chosen."""

    acquisition: Acquisition = Acquisition.REDUCTION
    apart: float = 0.15
    """Share of the genes in which any two policies of a batch differ at least."""
    interest: int = 200
    """Policies over which variance is averaged."""
    evolution: EvolutionConfig = field(
        default_factory=lambda: EvolutionConfig(population=128, generations=40)
    )
    """How candidates are bred where none are given."""


def seed_design(space: Space, count: int, fit: Fit, rng: np.random.Generator) -> Ints:
    """The first policies to measure, all made feasible and no two alike.

    The two extremes, uniform ones (a quarter), single changes from the least compressed one (a quarter), and
    random ones (the rest). There may be fewer than `count` where the space is small.
    """
    top_D = space.count_D - 1
    uniform_ND, single_ND = space.uniform(), space.neighbours(top_D)
    quarter = count // 4
    parts = [np.stack([np.zeros_like(top_D), top_D])]
    parts += [rng.permutation(part_ND)[:quarter] for part_ND in (uniform_ND, single_ND)]
    design_ND = fit(np.concatenate([*parts, space.sample(rng, 2 * count)]))
    return distinct(design_ND)[:count]


def distinct(index_ND: Ints) -> Ints:
    """The same policies once each, in their order."""
    return np.array(list(dict.fromkeys(map(tuple, index_ND))))


def select(
    predictor: Predictor,
    count: int,
    fit: Fit,
    config: SelectionConfig,
    rng: np.random.Generator,
    taken_ND: Ints,
) -> Ints:
    """A batch of policies bred to be worth measuring; none is in `taken`.

    Raises:
        UserError: there are not enough other policies.
    """
    space = predictor.space
    interest_RD = fit(space.sample(rng, config.interest))
    candidate_ND = fit(space.sample(rng, config.evolution.population))
    if config.acquisition is not Acquisition.RANDOM:

        def worth(index_ND: Ints) -> Floats:
            return _worth(predictor, index_ND, interest_RD, config.acquisition)

        candidate_ND, _ = evolve(space, worth, fit, config.evolution, rng, candidate_ND)
    taken = set(map(tuple, taken_ND))
    fresh = [row for row in dict.fromkeys(map(tuple, candidate_ND)) if row not in taken]
    if len(fresh) < count:
        raise UserError(f"only {len(fresh)} policies are left to measure: ask for fewer", "labels")
    return pick(predictor, np.array(fresh), count, interest_RD, config, rng)


def pick(
    predictor: Predictor,
    candidate_ND: Ints,
    count: int,
    interest_RD: Ints,
    config: SelectionConfig,
    rng: np.random.Generator,
) -> Ints:
    """`count` of the candidates, one after another, each apart from those before where that is possible."""
    if config.acquisition is Acquisition.RANDOM:
        return candidate_ND[rng.choice(len(candidate_ND), count, replace=False)]
    if config.acquisition is Acquisition.REDUCTION:
        return _most_reducing(predictor, candidate_ND, count, interest_RD)
    worth_N = _worth(predictor, candidate_ND, interest_RD, config.acquisition)
    order = [candidate_ND[n] for n in np.argsort(-worth_N, kind="stable")]
    chosen: list[Ints] = []
    for least in (config.apart * candidate_ND.shape[1], 0.0):
        for row in order:
            apart = all((row != other).sum() > least for other in chosen)
            if len(chosen) < count and apart:
                chosen.append(row)
    return np.stack(chosen)


def _worth(predictor: Predictor, index_ND: Ints, interest_RD: Ints, acquisition: Acquisition) -> Floats:
    space = predictor.space
    if acquisition is Acquisition.NEIGHBOUR:
        return np.array([_sensitivity(predictor, index_D) for index_D in index_ND])
    if acquisition is Acquisition.DEVIATION:
        return predictor.predict(space.z_of(index_ND))[1]
    cross_RN, own_N = predictor.covariance(space.z_of(interest_RD), space.z_of(index_ND))
    return (cross_RN**2).mean(0) / own_N


def _sensitivity(predictor: Predictor, index_D: Ints) -> float:
    """Mean squared difference of its prediction and those of policies one level lower in one gene."""
    space = predictor.space
    near_ND = space.neighbours(index_D)
    if not len(near_ND):
        return 0.0
    mean_N, _ = predictor.predict(space.z_of(np.concatenate([index_D[None], near_ND])))
    return float(((mean_N[1:] - mean_N[0]) ** 2).mean())


def _most_reducing(predictor: Predictor, candidate_ND: Ints, count: int, interest_RD: Ints) -> Ints:
    """Greedy: after each choice, covariances are as if its label were known."""
    both_MD = np.concatenate([interest_RD, candidate_ND])
    cross_MN, own_N = predictor.covariance(*(predictor.space.z_of(part) for part in (both_MD, candidate_ND)))
    chosen: list[int] = []
    for _ in range(count):
        worth_N = (cross_MN[: len(interest_RD)] ** 2).mean(0) / own_N
        worth_N[chosen] = -np.inf
        best = int(worth_N.argmax())
        chosen.append(best)
        row_N = cross_MN[len(interest_RD) + best]
        own_N = np.maximum(own_N - row_N**2 / own_N[best], 1e-9)
        cross_MN = cross_MN - np.outer(cross_MN[:, best], row_N) / (row_N[best] + 1e-9)
    return candidate_ND[chosen]
