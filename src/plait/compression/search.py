"""`Search`: from nothing to a policy for any budget: measure, learn, choose, measure.

A search is a function of its settings and of measurements, and measurements are kept (`evaluator.py`). So it
is resumed by running it again: what was measured is read, and the same policies are chosen in the same order.
"""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plait.compression.best import BestConfig, Found, best_policy
from plait.compression.complexity import Cost, at_levels
from plait.compression.evaluator import Evaluator, Fidelity, Label
from plait.compression.evolution import Fit, fit_to
from plait.compression.optimiser import Budget, OptimiserConfig, check, shares
from plait.compression.predictor import FEWEST, Predictor, PredictorConfig
from plait.compression.selection import SelectionConfig, distinct, seed_design, select
from plait.compression.space import Floats, Ints, Space
from plait.spec.errors import UserError
from plait.spec.policy import CompressionPolicy

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SearchConfig:
    """What is measured and how much of it."""

    labels: int = 60
    """Measurements in all, finalists among them."""
    first: int = 20
    """Of them the first design's."""
    batch: int = 8
    """Policies chosen between two fits."""
    promising: float = 0.5
    """Share of them that are taken for best within the budgets; the rest are those that teach most."""
    finalists: int = 4
    """Best policies of each budget that are measured before one is chosen."""
    fidelity: Fidelity = Fidelity.L1
    seed: int = 0
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    best: BestConfig = field(default_factory=lambda: BestConfig(OptimiserConfig(starts=16), finalists=8))


@dataclass(frozen=True, slots=True)
class Chosen:
    """The best policy that was measured within the budgets."""

    policy: CompressionPolicy
    predicted: float
    deviation: float
    measured: float


class Search:
    """Labels of one space as they are measured, and what they say."""

    def __init__(
        self,
        space: Space,
        evaluator: Evaluator,
        config: SearchConfig,
        noted: Callable[["Search"], None] = lambda search: None,
        known_ND: Ints | None = None,
    ) -> None:
        """Args:
            noted: called after each batch of measurements.
            known_ND: policies that others came to; those within the budgets are measured first.

        Raises:
            UserError: the labels do not suffice for a predictor and finalists.
        """
        check_labels(config.labels, config.first, config.finalists)
        self.space, self.evaluator, self.config, self.noted = space, evaluator, config, noted
        self.known_ND: Ints = np.empty((0, len(space)), dtype=np.int64) if known_ND is None else known_ND
        self.index_ND: Ints = np.empty((0, len(space)), dtype=np.int64)
        self.score_N: Floats = np.empty(0)

    def learn(self, *ladder: Sequence[Budget]) -> Predictor:
        """Measure until only the finalists' measurements are left, and fit.

        Among the first are uniform policies that use most of the budgets: what is chosen is no worse.
        Of every batch some are policies that the predictor takes for best within the budgets, where it must
        not be wrong; the rest are those from which it learns most. Where there are several rungs, each its
        budgets, batches are for them in turn, and all learn from all.

        Raises:
            UserError: no policy meets a rung's budgets, a measurement failed, or labels do not suffice for
                finalists of all rungs.
        """
        room = self.config.labels - self.config.finalists * len(ladder)
        if room < self.config.first:
            raise UserError(
                f"{self.config.labels} labels are too few for {len(ladder)} budgets: take "
                f"{self.config.first + self.config.finalists * len(ladder)} or more",
                "labels",
            )
        rng = np.random.default_rng(self.config.seed)
        fits = []
        for budgets in ladder:
            check(self.space, budgets)
            fits.append(fit_to(self.space, [Budget(b.cost, b.limit * 1.3) for b in budgets], rng))
        first = -(-self.config.first // len(ladder))
        for budgets, fit in zip(ladder, fits, strict=True):
            self.measure(self._design(budgets, fit, min(first, self.config.first - len(self.index_ND)), rng))
        turn = 0
        while len(self.index_ND) < room:
            budgets, fit = ladder[turn % len(ladder)], fits[turn % len(ladder)]
            turn += 1
            predictor = self.predictor()
            count = min(self.config.batch, room - len(self.index_ND))
            promising_ND = self._fresh(self.best(predictor, budgets, rng).index_ND)[
                : int(count * self.config.promising)
            ]
            known_ND = np.concatenate([self.index_ND, promising_ND])
            rest = count - len(promising_ND)
            learnt_ND = select(predictor, rest, fit, self.config.selection, rng, known_ND)
            self.measure(np.concatenate([promising_ND, learnt_ND]))
            log.info("%d labels, best %.2f", len(self.score_N), self.score_N.max())
        return self.predictor()

    def _design(self, budgets: Sequence[Budget], fit: Fit, count: int, rng: np.random.Generator) -> Ints:
        """What is measured before anything is known; nothing that was measured already."""
        told_ND = self.known_ND[self._fits(budgets, self.known_ND)]
        edge_ND = self._uniform(budgets)[: count // 3]
        design_ND = seed_design(self.space, count + len(self.index_ND), fit, rng)
        return self._fresh(distinct(np.concatenate([told_ND, edge_ND, design_ND])))[:count]

    def _uniform(self, budgets: Sequence[Budget]) -> Ints:
        """Uniform policies within the budgets, those first that use most."""
        uniform_ND = self.space.uniform()
        used_N = shares(budgets, self.space.z_of(uniform_ND)).max(0)
        order_N = np.argsort(-used_N, kind="stable")
        return uniform_ND[order_N[used_N[order_N] <= 1]]

    def choose(self, predictor: Predictor, budgets: Sequence[Budget]) -> Chosen:
        """Measure the finalists for the budgets; the best of all measured policies that meet them."""
        rng = np.random.default_rng(self.config.seed)
        found = self.best(predictor, budgets, rng)
        self.measure(self._fresh(found.index_ND)[: self.config.finalists])
        top = self.best_measured(budgets)
        assert top is not None, "finalists are feasible, and they were measured"
        mean_N, std_N = predictor.predict(self.space.z_of(self.index_ND[top : top + 1]))
        policy = self.space.decode(self.index_ND[top])
        return Chosen(policy, float(mean_N[0]), float(std_N[0]), float(self.score_N[top]))

    def best_measured(self, budgets: Sequence[Budget]) -> int | None:
        """The number of the best measured policy within the budgets, if there is any."""
        fits_N = self._fits(budgets, self.index_ND)
        return int(np.where(fits_N, self.score_N, -np.inf).argmax()) if fits_N.any() else None

    def best(self, predictor: Predictor, budgets: Sequence[Budget], rng: np.random.Generator) -> Found:
        """What the predictor takes for best."""
        return best_policy(self.space, predictor, budgets, self.config.best, rng, self.index_ND)

    def front(self, predictor: Predictor, cost: Cost, count: int) -> list[tuple[float, Found]]:
        """What the predictor takes for best at `count` limits of one cost, from just above the least to the
        whole. Nothing is measured."""
        ends, _ = cost(np.stack([np.zeros(len(self.space)), np.ones(len(self.space))]))
        rng = np.random.default_rng(self.config.seed)
        limits = np.geomspace(1.05 * ends[0], ends[1] * 1.001, count)
        return [(float(limit), self.best(predictor, [Budget(cost, limit)], rng)) for limit in limits]

    def predictor(self) -> Predictor:
        """Fitted to all labels so far."""
        return Predictor(self.space, self.space.z_of(self.index_ND), self.score_N, self.config.predictor)

    def measure(self, index_ND: Ints) -> list[Label]:
        """Measure policies (or read that they were) and learn of them."""
        policies = [self.space.decode(index_D) for index_D in index_ND]
        labels = self.evaluator.measure(policies, self.config.fidelity, self.config.seed)
        self.index_ND = np.concatenate([self.index_ND, index_ND])
        self.score_N = np.concatenate([self.score_N, [label.metric["score"] for label in labels]])
        self.noted(self)
        return labels

    def _fits(self, budgets: Sequence[Budget], index_ND: Ints) -> NDArray[np.bool_]:
        return (shares(budgets, self.space.z_of(index_ND)) <= 1).all(0)

    def _fresh(self, index_ND: Ints) -> Ints:
        """Those that were not measured yet."""
        known = set(map(tuple, self.index_ND))
        return index_ND[[tuple(index_D) not in known for index_D in index_ND]]


def rung(asked: float, budget: Budget, searches: Sequence[Search]) -> dict[str, Any]:
    """A row of a sweep: the best policy within a budget that any of its searches measured."""
    tops = [(each, each.best_measured([budget])) for each in searches]
    measured = [(each, n) for each, n in tops if n is not None]
    assert measured, "each search measured finalists for its own budget"
    best, n = max(measured, key=lambda pair: float(pair[0].score_N[pair[1]]))
    used = float(at_levels(budget.cost, best.space, best.index_ND[n])[0])
    return {
        "asked": asked,
        "limit": budget.limit,
        "used": used,
        "measured": float(best.score_N[n]),
        "policy": json.loads(best.space.decode(best.index_ND[n]).json()),
    }


def check_labels(labels: int, first: int, finalists: int) -> None:
    """Raises UserError: they do not suffice for a predictor and finalists."""
    least = FEWEST + finalists
    if first < FEWEST or labels < first + finalists:
        raise UserError(
            f"{labels} labels, {first} of them first, are too few: take {least} or more", "labels"
        )
