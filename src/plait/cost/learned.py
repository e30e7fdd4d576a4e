"""`Learned`: latencies of a deployment from measurements of others.

Trees and a kernel each learn what the roofline leaves unexplained; how far each is trusted, and how far the
mixture leans to the low side (which mean percentage errors ask for), is chosen on inner folds of the
measurements that it is given, for each kind of deployment on its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from plait.cost.boosting import Boosted, BoostedConfig
from plait.cost.decoders import ACCELERATORS, DECODERS
from plait.cost.deployment import Deployment, features
from plait.cost.kernel import Kernel, KernelConfig
from plait.spec.errors import UserError

Array = NDArray[np.float64]
Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Learner:
    """One way to learn."""

    how: BoostedConfig | KernelConfig
    named: bool = False
    """It also sees which model and device it is, not only their sizes."""
    own: bool = False
    """It learns each kind of deployment from that kind alone."""


@dataclass(frozen=True, slots=True)
class LearnedConfig:
    """What is tried, and on how many inner folds."""

    learners: tuple[Learner, ...] = (
        Learner(BoostedConfig(lean=0.5), named=True),
        Learner(BoostedConfig(lean=1.0)),
        Learner(BoostedConfig(lean=1.0, depth=5), named=True, own=True),
        Learner(KernelConfig(0.1, 0.01)),
        Learner(KernelConfig(0.05, 0.001), named=True),
        Learner(KernelConfig(0.05, 0.001), own=True),
        Learner(KernelConfig(0.05, 0.001), named=True, own=True),
    )
    lows: tuple[float, ...] = (0.0, 0.03, 0.06, 0.1, 0.15)
    """Subtracted from the logarithm of a prediction."""
    bags: int = 2
    """Trees are fitted this often, with different samples, and averaged."""
    folds: int = 3
    parts: int = 5
    """Learners' weights are multiples of one part in this many."""
    best: float = 0.02
    """Share of the tried mixtures whose mean is taken."""
    by_median: tuple[str, ...] = ()
    """Kinds whose mixture is chosen by the median of percentage errors, not by their mean."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """How the learners' logarithms are put together for one kind of deployment."""

    weights: tuple[float, ...]
    low: float


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """What one learner learned: models whose mean counts, by kind; "" is for kinds that were not seen."""

    columns: Rows
    models: Mapping[str, tuple[Boosted | Kernel, ...]]

    def predict(self, table: Array, kinds: Sequence[str]) -> Array:
        """Values of rows."""
        used = np.array([name if name in self.models else "" for name in kinds])
        found = np.zeros(len(table))
        for name in sorted(set(used.tolist())):
            rows = used == name
            seen = table[np.ix_(rows, self.columns)]
            found[rows] = np.mean([model.predict(seen) for model in self.models[name]], axis=0)
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Learned:
    """A fitted predictor of one latency in seconds."""

    base: tuple[str, ...]
    parts: tuple[Part, ...]
    mixtures: Mapping[str, Mixture]
    """By `kind`."""

    def seconds(self, served: Sequence[Deployment]) -> Array:
        """Predicted latency of each deployment."""
        table, names = _table(served)
        kinds = [kind(each) for each in served]
        stacked = np.stack([part.predict(table, kinds) for part in self.parts], axis=1)
        spare = next(iter(self.mixtures.values()))
        found = np.zeros(len(served))
        for row, name in enumerate(kinds):
            mixture = self.mixtures.get(name, spare)
            found[row] = stacked[row] @ np.array(mixture.weights) - mixture.low
        return np.exp(found + _base(table, names, self.base))

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
        table, names = _table(served)
        target = np.log(seconds) - _base(table, names, base)
        kinds = np.array([kind(each) for each in served])
        inner = _folds(groups, config.folds, rng)
        unseen = np.zeros((len(served), len(config.learners)))
        for fold in range(config.folds):
            here = inner == fold
            for column, learner in enumerate(config.learners):
                part = _part(learner, table[~here], target[~here], kinds[~here], 1, rng)
                unseen[here, column] = part.predict(table[here], kinds[here].tolist())
        parts = tuple(_part(each, table, target, kinds, config.bags, rng) for each in config.learners)
        return Learned(base, parts, _chosen(unseen, target, kinds, config))


def kind(served: Deployment) -> str:
    """Deployments that are mixed alike."""
    if not served.disaggregated:
        return "aggregated"
    return "disaggregated" if served.workers_known else "layout only"


def _table(served: Sequence[Deployment]) -> tuple[Array, tuple[str, ...]]:
    """Features of deployments, and after them which model and device each is."""
    rows = [features(each) for each in served]
    names = tuple(rows[0])
    identity = [
        [float(each.model.name == name) for name in DECODERS]
        + [float(each.device.name == name) for name in ACCELERATORS]
        for each in served
    ]
    return np.hstack([np.array([[row[name] for name in names] for row in rows]), np.array(identity)]), names


def _base(table: Array, names: tuple[str, ...], base: tuple[str, ...]) -> Array:
    columns = [names.index(name) for name in base]
    summed: Array = np.log(np.exp(table[:, columns]).sum(axis=1))
    return summed


def _folds(groups: Rows, count: int, rng: Generator) -> Rows:
    distinct, member = np.unique(groups, return_inverse=True)
    return (rng.permutation(len(distinct)) % count)[member]


def _part(
    learner: Learner, table: Array, target: Array, kinds: NDArray[np.str_], bags: int, rng: Generator
) -> Part:
    width = table.shape[1] - (0 if learner.named else len(DECODERS) + len(ACCELERATORS))
    columns = np.arange(width)
    seen = table[:, columns]
    if not learner.own:
        return Part(columns, {"": _models(learner.how, seen, target, bags, rng)})
    names, counts = np.unique(kinds, return_counts=True)
    models = {}
    for name in names.tolist():
        rows = kinds == name
        models[name] = _models(learner.how, seen[rows], target[rows], bags, rng)
    models[""] = models[names[counts.argmax()].item()]
    return Part(columns, models)


def _models(
    how: BoostedConfig | KernelConfig, table: Array, target: Array, bags: int, rng: Generator
) -> tuple[Boosted | Kernel, ...]:
    if isinstance(how, KernelConfig):
        return (Kernel.fit(table, target, how),)
    return tuple(Boosted.fit(table, target, how, rng) for _ in range(bags))


def _chosen(
    unseen: Array, target: Array, kinds: NDArray[np.str_], config: LearnedConfig
) -> dict[str, Mixture]:
    """For each kind, the mean of those mixtures whose errors on inner folds are smallest: the best one alone
    would owe much to chance where a kind has few rows."""
    parts = config.parts
    counts = product(range(parts + 1), repeat=unseen.shape[1])
    shares = np.array([each for each in counts if sum(each) == parts]) / parts
    found = {}
    for name in sorted(set(kinds.tolist())):
        rows, centre = kinds == name, np.median if name in config.by_median else np.mean
        mixed = unseen[rows] @ shares.T - target[rows, None]
        errors = np.array([centre(np.abs(np.exp(mixed - low) - 1), axis=0) for low in config.lows])
        best = np.argsort(errors, axis=None, kind="stable")[: max(round(errors.size * config.best), 1)]
        low, share = np.unravel_index(best, errors.shape)
        found[name] = Mixture(
            tuple(shares[share].mean(axis=0).tolist()), float(np.array(config.lows)[low].mean())
        )
    return found
