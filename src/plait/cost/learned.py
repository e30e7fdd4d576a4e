"""`Learned`: latencies of a deployment from measurements of others.

Trees and a kernel each learn what the roofline leaves unexplained; how far each is trusted, and how far the
mixture leans to the low side (which mean percentage errors ask for), is chosen on inner folds of the
measurements that it is given, for each kind of deployment on its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from plait.cost.boosting import Boosted, BoostedConfig
from plait.cost.deployment import Deployment, features
from plait.cost.kernel import Kernel, KernelConfig
from plait.spec.errors import UserError

Array = NDArray[np.float64]
Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LearnedConfig:
    """What is tried, and on how many inner folds."""

    boosted: tuple[BoostedConfig, ...] = (BoostedConfig(lean=0.0), BoostedConfig(lean=1.0))
    kernels: tuple[KernelConfig, ...] = (KernelConfig(0.1, 0.003), KernelConfig(0.1, 0.03), KernelConfig(0.2, 0.03))
    lows: tuple[float, ...] = (0.0, 0.03, 0.06, 0.1, 0.15)
    """Subtracted from the logarithm of a prediction."""
    bags: int = 2
    """Trees are fitted this often, with different samples, and averaged."""
    folds: int = 3
    median: bool = False
    """Choose by the median of percentage errors, not by their mean."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """How the learners' logarithms are put together for one kind of deployment."""

    weights: tuple[float, ...]
    low: float


@dataclass(frozen=True, slots=True, eq=False)
class Learned:
    """A fitted predictor of one latency in seconds."""

    names: tuple[str, ...]
    base: tuple[str, ...]
    learners: tuple[tuple[Boosted | Kernel, ...], ...]
    mixtures: Mapping[str, Mixture]
    """By `kind`."""

    def seconds(self, served: Sequence[Deployment]) -> Array:
        """Predicted latency of each deployment."""
        table = _table(served, self.names)
        parts = _parts(self.learners, table)
        kinds = [kind(each) for each in served]
        return np.exp(_mixed(parts, kinds, self.mixtures) + _base(table, self.names, self.base))

    @staticmethod
    def fit(
        served: Sequence[Deployment],
        seconds: Array,
        groups: Rows,
        base: tuple[str, ...],
        config: LearnedConfig,
        rng: Generator,
    ) -> "Learned":
        """Learn from measurements.

        Args:
            served: what was measured.
            seconds: its latency.
            groups: measurements of one group are kept in one inner fold.
            base: features whose sum of times the learners correct.
            config: what is tried.
            rng: draws the inner folds and the trees' samples.

        Raises:
            UserError: a latency is not positive.
        """
        if len(seconds) != len(served) or not (np.asarray(seconds) > 0).all():
            raise UserError("each deployment needs one measured latency above 0; leave failed runs out")
        names = tuple(features(served[0]))
        table = _table(served, names)
        target = np.log(seconds) - _base(table, names, base)
        kinds = [kind(each) for each in served]
        inner = _folds(groups, config.folds, rng)
        unseen = [np.zeros(len(served)) for _ in range(len(config.boosted) + len(config.kernels))]
        for fold in range(config.folds):
            here = inner == fold
            parts = _parts(_fitted(table[~here], target[~here], replace(config, bags=1), rng), table[here])
            for column, part in zip(unseen, parts, strict=True):
                column[here] = part
        mixtures = _chosen(unseen, target, kinds, config)
        return Learned(names, base, _fitted(table, target, config, rng), mixtures)


def kind(served: Deployment) -> str:
    """Deployments that are mixed alike."""
    if not served.disaggregated:
        return "aggregated"
    return "disaggregated" if served.workers_known else "layout only"


def _table(served: Sequence[Deployment], names: tuple[str, ...]) -> Array:
    rows = (features(each) for each in served)
    return np.array([[row[name] for name in names] for row in rows])


def _base(table: Array, names: tuple[str, ...], base: tuple[str, ...]) -> Array:
    columns = [names.index(name) for name in base]
    summed: Array = np.log(np.exp(table[:, columns]).sum(axis=1))
    return summed


def _folds(groups: Rows, count: int, rng: Generator) -> Rows:
    distinct, member = np.unique(groups, return_inverse=True)
    return (rng.permutation(len(distinct)) % count)[member]


def _fitted(
    table: Array, target: Array, config: LearnedConfig, rng: Generator
) -> tuple[tuple[Boosted | Kernel, ...], ...]:
    found: list[tuple[Boosted | Kernel, ...]] = [
        tuple(Boosted.fit(table, target, each, rng) for _ in range(config.bags)) for each in config.boosted
    ]
    found += [(Kernel.fit(table, target, each),) for each in config.kernels]
    return tuple(found)


def _parts(learners: Sequence[Sequence[Boosted | Kernel]], table: Array) -> list[Array]:
    return [np.mean([each.predict(table) for each in bag], axis=0) for bag in learners]


def _mixed(parts: Sequence[Array], kinds: Sequence[str], mixtures: Mapping[str, Mixture]) -> Array:
    stacked, found = np.stack(parts, axis=1), np.zeros(len(kinds))
    spare = next(iter(mixtures.values()))
    for row, name in enumerate(kinds):
        mixture = mixtures.get(name, spare)
        found[row] = stacked[row] @ np.array(mixture.weights) - mixture.low
    return found


def _chosen(
    unseen: Sequence[Array], target: Array, kinds: Sequence[str], config: LearnedConfig
) -> dict[str, Mixture]:
    """For each kind, the mixture whose errors on inner folds are smallest; weights come in quarters."""
    stacked = np.stack(unseen, axis=1)
    quarters = [each for each in product(range(5), repeat=stacked.shape[1]) if sum(each) == 4]
    found = {}
    for name in sorted(set(kinds)):
        rows = np.array([each == name for each in kinds])
        tried = [
            (_error(stacked[rows] @ np.array(each) / 4 - low, target[rows], config.median), each, low)
            for each in quarters
            for low in config.lows
        ]
        _, weights, low = min(tried)
        found[name] = Mixture(tuple(each / 4 for each in weights), low)
    return found


def _error(value: Array, target: Array, median: bool) -> float:
    errors = np.abs(np.exp(value - target) - 1)
    return float(np.median(errors) if median else errors.mean())
