"""`Boosted`: gradient boosting of regression trees on histograms, in numpy.

Trees are grown level by level on at most 64 bins a feature. Each tree fits the sign of the residuals, and
each leaf moves to the median of its own, so that the mean absolute error is minimised: a wild measurement
weighs no more than any other.
"""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from plait.spec.errors import UserError

Array = NDArray[np.float64]
Bins = NDArray[np.int64]
BINS = 64


@dataclass(frozen=True, slots=True)
class BoostedConfig:
    """How many trees, how large, how bold."""

    trees: int = 300
    depth: int = 6
    rate: float = 0.06
    """Share of a leaf's median that a tree adds."""
    least: int = 4
    """Fewest rows of a leaf."""
    columns: float = 0.4
    """Share of the features that a tree may split on."""
    rows: float = 0.8
    """Share of the rows that a tree is grown on."""
    lean: float = 0.0
    """How much less an overestimate may count: rows weigh exp(lean * (prediction - target)), so that 1 makes
    the error relative to the target where both are logarithms."""


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """A full binary tree: node i has children 2i + 1 and 2i + 2. A node without a split goes left."""

    feature: Bins
    cut: Bins
    """Rows whose bin is above it go right."""
    leaf: Array

    def at(self, bins: Bins) -> Array:
        """Values of rows, given their bins."""
        return self.leaf[self.leaf_of(bins)]

    def leaf_of(self, bins: Bins) -> Bins:
        """Index of each row's leaf."""
        node = np.zeros(len(bins), np.int64)
        every = np.arange(len(bins))
        while node.size and node[0] < len(self.feature):
            node = 2 * node + 1 + (bins[every, self.feature[node]] > self.cut[node])
        return node - len(self.feature)


@dataclass(frozen=True, slots=True, eq=False)
class Boosted:
    """A fitted model: `start` plus the sum of its trees."""

    edges: tuple[Array, ...]
    start: float
    trees: tuple[Tree, ...]

    def predict(self, features: Array) -> Array:
        """Values of rows, [rows, columns] -> [rows]."""
        bins = _binned(features, self.edges)
        summed: Array = np.sum([tree.at(bins) for tree in self.trees], axis=0)
        return summed + self.start

    @staticmethod
    def fit(features: Array, target: Array, config: BoostedConfig, rng: Generator) -> "Boosted":
        """Fit to rows.

        Raises:
            UserError: there are fewer rows than two leaves need.
        """
        if len(target) < 2 * config.least:
            raise UserError(f"{len(target)} measurements are too few: give at least {2 * config.least}")
        edges = tuple(_edges(column) for column in features.T)
        bins = _binned(features, edges)
        start = float(np.median(target))
        value, trees = np.full(len(target), start), []
        for _ in range(config.trees):
            weight = np.exp(np.clip(config.lean * (value - target), -2, 1))
            tree = _grown(bins, target - value, weight, config, rng)
            value = value + tree.at(bins)
            trees.append(tree)
        return Boosted(edges, start, tuple(trees))


def _edges(column: Array) -> Array:
    distinct = np.unique(column)
    if len(distinct) > BINS:
        distinct = np.unique(np.quantile(column, np.linspace(0, 1, BINS + 1)))
    middles: Array = (distinct[1:] + distinct[:-1]) / 2
    return middles[: BINS - 1]


def _binned(features: Array, edges: tuple[Array, ...]) -> Bins:
    return np.stack([np.searchsorted(edge, col) for edge, col in zip(edges, features.T, strict=True)], axis=1)


def _grown(bins: Bins, residual: Array, weight: Array, config: BoostedConfig, rng: Generator) -> Tree:
    """One tree on the signs of the residuals, of a sample of rows and columns."""
    rows, columns = bins.shape
    kept = np.sort(rng.permutation(rows)[: max(round(rows * config.rows), 2 * config.least)])
    picked = np.sort(rng.permutation(columns)[: max(round(columns * config.columns), 1)])
    inner = 2**config.depth - 1
    feature, cut = np.zeros(inner, np.int64), np.full(inner, BINS, np.int64)
    sample, pull = bins[np.ix_(kept, picked)], (np.sign(residual) * weight)[kept]
    node = np.zeros(len(kept), np.int64)
    for level in range(config.depth):
        first, width = 2**level - 1, 2**level
        chosen, at = _splits(sample, pull, node - first, width, config.least)
        feature[first : first + width], cut[first : first + width] = picked[chosen], at
        here = chosen[node - first]
        node = 2 * node + 1 + (sample[np.arange(len(kept)), here] > at[node - first])
    tree = Tree(feature, cut, np.zeros(inner + 1))
    for leaf, value in _medians(tree.leaf_of(bins[kept]), residual[kept], weight[kept]):
        tree.leaf[leaf] = config.rate * value
    return tree


def _splits(sample: Bins, pull: Array, node: Bins, width: int, least: int) -> tuple[Bins, Bins]:
    """For each node of a level, the column and the bin that explain most of the pull; BINS: no split."""
    columns = sample.shape[1]
    flat = ((node[:, None] * columns + np.arange(columns)) * BINS + sample).ravel()
    shape = (width, columns, BINS)
    size = width * columns * BINS
    total = np.bincount(flat, np.repeat(pull, columns), size).reshape(shape).cumsum(axis=2)
    count = np.bincount(flat, minlength=size).reshape(shape).cumsum(axis=2)
    all_pull, all_count = total[:, :, -1:], count[:, :, -1:]
    right = all_count - count
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = total**2 / count + (all_pull - total) ** 2 / right - all_pull**2 / all_count
    gain = np.where((count >= least) & (right >= least), gain, -1.0).reshape(width, -1)
    best = gain.argmax(axis=1)
    split = gain[np.arange(width), best] > 0
    return best // BINS, np.where(split, best % BINS, BINS)


def _medians(leaf: Bins, residual: Array, weight: Array) -> list[tuple[int, float]]:
    """Weighted median of the residuals of each leaf that has rows."""
    order = np.lexsort((residual, leaf))
    starts = np.flatnonzero(np.diff(leaf[order], prepend=-1))
    found = []
    for rows in np.split(order, starts[1:]):
        mass = np.cumsum(weight[rows])
        found.append((int(leaf[rows[0]]), float(residual[rows[np.searchsorted(mass, mass[-1] / 2)]])))
    return found
