"""`Predictor`: the performance of a policy nobody measured, with an interval that holds what it says.

An ensemble of Gaussian processes on several views of a policy. How much each counts is found from the labels
alone: every member predicts each label as if that label were left out (which has a closed form), and the
weights are those under which these predictions err least. The same errors say by which factor the stated
deviation has to be stretched for 90 % of them to lie within their 90 % intervals.
Legend: N labels, B policies, D genes, M members.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from plait.compression.features import FeatureConfig, View
from plait.compression.process import GaussianProcess, ProcessConfig
from plait.compression.space import Floats, Space
from plait.spec.errors import UserError

NINETY = 1.6449
"""Standard deviations to either side that hold 90 % of a normal distribution."""
FEWEST = 8
"""Labels below which nothing can be fitted."""


@dataclass(frozen=True, slots=True)
class PredictorConfig:
    """What the ensemble is made of."""

    members: tuple[tuple[View, ProcessConfig], ...] = (
        (FeatureConfig(), ProcessConfig(clip=2.0)),
        (FeatureConfig(), ProcessConfig(smooth=False, clip=2.0)),
    )
    """Views and processes."""
    sharpness: float = 0.05
    """Ridge on the members' weights, as a share of the labels' variance; it pulls towards equal weights."""


@dataclass(frozen=True, slots=True)
class Slopes:
    """Predictions and their derivatives by z."""

    mean_B: Floats
    std_B: Floats
    mean_BD: Floats
    std_BD: Floats


class Predictor:
    """Fitted to labels of one space; immutable."""

    def __init__(
        self, space: Space, z_ND: Floats, y_N: Floats, config: PredictorConfig | None = None
    ) -> None:
        """`y_N` are measured performances, higher is better.

        Raises:
            UserError: too few labels, or one is not a number.
        """
        config = config or PredictorConfig()
        if len(y_N) < FEWEST or not np.isfinite(y_N).all():
            raise UserError(f"a predictor needs at least {FEWEST} labels, all of them numbers", "labels")
        self.space, self.centre, self.spread = space, float(y_N.mean()), float(y_N.std()) or 1.0
        target_N = (y_N - self.centre) / self.spread
        # Members that read the same features share one view, which is read once.
        views = list(dict.fromkeys(view for view, _ in config.members))
        self.views = [_View(space, z_ND, view) for view in views]
        x_VNF = [view.read(z_ND) for view in self.views]
        self.view_M = [views.index(view) for view, _ in config.members]
        self.processes = [
            GaussianProcess(x_VNF[v], target_N, self.views[v].kind_F, process)
            for v, (_, process) in zip(self.view_M, config.members, strict=True)
        ]
        left_MN, std_MN = _stacked(process.left_out() for process in self.processes)
        self.weight_M = _weights(left_MN, target_N, config.sharpness)
        left_N, mixed_N = _mixed(self.weight_M, left_MN, std_MN)
        share = min(1.0, 0.9 * (len(y_N) + 1) / len(y_N))
        self.stretch = float(np.quantile(np.abs(left_N - target_N) / mixed_N, share)) / NINETY
        self.left_out_N = left_N * self.spread + self.centre

    def predict(self, z_BD: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation of a measurement at z."""
        mean_MB, std_MB = _stacked(p.predict(x_BF) for p, x_BF in self._read(z_BD))
        mean_B, std_B = _mixed(self.weight_M, mean_MB, std_MB)
        return mean_B * self.spread + self.centre, std_B * self.stretch * self.spread

    def covariance(self, z_AD: Floats, z_BD: Floats) -> tuple[Floats, Floats]:
        """Covariance of measurements at the one with those at the other (A, B), and variances of the latter.

        In spreads of the labels, without the stretch: for comparing policies, not for intervals.
        """
        both = zip(self._read(z_AD), self._read(z_BD), strict=True)
        cross_MAB, own_MB = _stacked(process.covariance(x_AF, x_BF) for (process, x_AF), (_, x_BF) in both)
        return np.einsum("m,mab->ab", self.weight_M, cross_MAB), self.weight_M @ own_MB

    def slopes(self, z_BD: Floats) -> Slopes:
        """The same as `predict`, with derivatives by z."""
        found = [process.slopes(x_BF) for process, x_BF in self._read(z_BD)]
        mean_MB, std_MB = np.array([f[0] for f in found]), np.array([f[1] for f in found])
        mean_B, std_B = _mixed(self.weight_M, mean_MB, std_MB)
        by_z_2BD = np.zeros((2, *z_BD.shape))
        for number, view in enumerate(self.views):
            by_feature_2BF = np.zeros((2, len(z_BD), len(view.kind_F)))
            for m, (mean_m_B, std_m_B, mean_BF, std_BF) in enumerate(found):
                if self.view_M[m] == number:
                    # From std^2 = sum w (std_m^2 + (mean_m - mean)^2): the mean's own derivative drops out.
                    both_BF = std_m_B[:, None] * std_BF + (mean_m_B - mean_B)[:, None] * mean_BF
                    by_feature_2BF[0] += self.weight_M[m] * mean_BF
                    by_feature_2BF[1] += self.weight_M[m] * both_BF / std_B[:, None]
            by_z_2BD += view.pull(z_BD, by_feature_2BF)
        scale = self.stretch * self.spread
        return Slopes(
            mean_B * self.spread + self.centre, std_B * scale, by_z_2BD[0] * self.spread, by_z_2BD[1] * scale
        )

    def _read(self, z_BD: Floats) -> list[tuple[GaussianProcess, Floats]]:
        """Each process with what it reads."""
        x_VBF = [view.read(z_BD) for view in self.views]
        return [(process, x_VBF[v]) for process, v in zip(self.processes, self.view_M, strict=True)]


class _View:
    """Standardised features."""

    def __init__(self, space: Space, z_ND: Floats, view: View) -> None:
        self.features = view.of(space)
        self.kind_F = np.array(self.features.groups)
        x_NF = self.features(z_ND)
        self.centre_F, spread_F = x_NF.mean(0), x_NF.std(0)
        # A feature that no label varies says nothing; dividing by one keeps it small.
        self.spread_F = np.where(spread_F > 1e-9, spread_F, 1.0)

    def read(self, z_BD: Floats) -> Floats:
        return (self.features(z_BD) - self.centre_F) / self.spread_F

    def pull(self, z_BD: Floats, by_feature_2BF: Floats) -> Floats:
        return self.features.pull(z_BD, by_feature_2BF / self.spread_F)


def _stacked(pairs: Iterable[tuple[Floats, Floats]]) -> tuple[Floats, Floats]:
    """Pairs of all members as two arrays."""
    first, second = zip(*pairs, strict=True)
    return np.array(first), np.array(second)


def _mixed(weight_M: Floats, mean_MB: Floats, std_MB: Floats) -> tuple[Floats, Floats]:
    """Moments of a mixture."""
    mean_B = weight_M @ mean_MB
    return mean_B, np.sqrt(weight_M @ (std_MB**2 + (mean_MB - mean_B) ** 2))


def _weights(left_MN: Floats, target_N: Floats, sharpness: float) -> Floats:
    """Non-negative weights of sum 1 whose mixture errs least on labels left out.

    Projected descent on a small convex problem; the projection is Duchi et al. (ICML 2008).
    """
    members, labels = left_MN.shape
    even_M = np.full(members, 1 / members)
    square_MM = left_MN @ left_MN.T / labels + sharpness * np.eye(members)
    pull_M = left_MN @ target_N / labels + sharpness * even_M
    weight_M, rate = even_M, 1 / np.linalg.norm(square_MM, 2)
    for _ in range(2000):
        weight_M = _on_simplex(weight_M - rate * (square_MM @ weight_M - pull_M))
    return weight_M


def _on_simplex(weight_M: Floats) -> Floats:
    falling_M = np.sort(weight_M)[::-1]
    over_M = (falling_M.cumsum() - 1) / np.arange(1, len(weight_M) + 1)
    return np.maximum(weight_M - over_M[(falling_M > over_M).nonzero()[0][-1]], 0)
