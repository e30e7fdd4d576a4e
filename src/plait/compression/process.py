"""`GaussianProcess`: a linear model and a smooth remainder, each with a scale for every feature.

Covariance of two policies: constant + sum of (s_f x_f)(s_f x'_f) + a^2 exp(-1/2 sum of r_f^2 (x_f - x'_f)^2).
Scales s and r of the features of one kind share a centre. Most stay near it, a few may leave it far behind,
for the prior has heavy tails (it is Cauchy's). All are found by ascending the marginal likelihood
(Rasmussen and Williams, chapter 5), whose gradient is exact.
Legend: N labels, F features, K kinds, B policies.
"""

from dataclasses import dataclass

import numpy as np

from plait.compression.adam import Adam
from plait.compression.space import Floats, Ints


@dataclass(frozen=True, slots=True)
class ProcessConfig:
    """What is fitted, and how long."""

    smooth: bool = True
    """With the smooth remainder; else the linear model alone, which is a ridge regression."""
    width: float = 0.3
    """Width of the prior of a feature's log scale around that of its kind."""
    clip: float = np.inf
    """Labels farther from their median than so many standard deviations are drawn in to that: a network that
    collapsed says little about how the others differ."""
    steps: int = 80
    """Steps of the ascent."""
    rate: float = 0.08
    """Size of its steps, in log scale."""


@dataclass
class Scales:
    """Logarithms of what the covariance is made of."""

    linear_F: Floats
    radial_F: Floats
    amplitude: float
    noise: float


class GaussianProcess:
    """Fitted once; features and targets are standardised by the caller."""

    def __init__(self, x_NF: Floats, y_N: Floats, kind_F: Ints, config: ProcessConfig) -> None:
        middle, far = np.median(y_N), config.clip * y_N.std()
        self.x_NF, self.y_N, self.config = x_NF, np.clip(y_N, middle - far, middle + far), config
        self.scales = _fit(x_NF, self.y_N, kind_F, config)
        covariance_NN, _ = _covariance(x_NF, x_NF, self.scales, config.smooth)
        covariance_NN[np.diag_indices_from(covariance_NN)] += np.exp(2 * self.scales.noise)
        self.inverse_NN = np.linalg.inv(covariance_NN)
        self.alpha_N = self.inverse_NN @ self.y_N
        # Without the remainder all is said by as many weights as there are features: fewer than labels.
        self.weights = None if config.smooth else self._as_weights()

    def left_out(self) -> tuple[Floats, Floats]:
        """Mean and standard deviation that each label would be predicted with, were it left out."""
        own_N = np.diagonal(self.inverse_NN)
        return self.y_N - self.alpha_N / own_N, np.sqrt(1 / own_N)

    def predict(self, x_BF: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation of a label at x."""
        if self.weights is not None:
            return self.weights.predict(x_BF)[:2]
        cross_BN, _ = _covariance(x_BF, self.x_NF, self.scales, self.config.smooth)
        own_B = self._own(x_BF) - ((cross_BN @ self.inverse_NN) * cross_BN).sum(1)
        return cross_BN @ self.alpha_N, np.sqrt(np.maximum(own_B, 1e-12))

    def covariance(self, x_AF: Floats, x_BF: Floats) -> tuple[Floats, Floats]:
        """Posterior covariance of labels at x_A with those at x_B (A, B), and variances of the latter."""
        first_AN, _ = _covariance(x_AF, self.x_NF, self.scales, self.config.smooth)
        second_BN, _ = _covariance(x_BF, self.x_NF, self.scales, self.config.smooth)
        solved_BN = second_BN @ self.inverse_NN
        prior_AB, _ = _covariance(x_AF, x_BF, self.scales, self.config.smooth)
        own_B = self._own(x_BF) - (solved_BN * second_BN).sum(1)
        return prior_AB - first_AN @ solved_BN.T, own_B

    def slopes(self, x_BF: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """Mean and standard deviation at x, and their derivatives (B, F) by x."""
        if self.weights is not None:
            return self.weights.predict(x_BF)
        cross_BN, radial_BN = _covariance(x_BF, self.x_NF, self.scales, self.config.smooth)
        solved_BN = cross_BN @ self.inverse_NN
        std_B = np.sqrt(np.maximum(self._own(x_BF) - (solved_BN * cross_BN).sum(1), 1e-12))
        linear_F = np.exp(2 * self.scales.linear_F)
        own_BF = 2 * linear_F * x_BF
        back = [self._pull(weight_BN, x_BF, radial_BN) for weight_BN in (self.alpha_N[None], solved_BN)]
        return cross_BN @ self.alpha_N, std_B, back[0], (own_BF - 2 * back[1]) / (2 * std_B[:, None])

    def _as_weights(self) -> "_Weights":
        prior_G = np.append(1.0, np.exp(2 * self.scales.linear_F))
        gain_GN = prior_G[:, None] * _with_one(self.x_NF).T
        spread_GG = np.diag(prior_G) - gain_GN @ self.inverse_NN @ gain_GN.T
        return _Weights(gain_GN @ self.alpha_N, spread_GG, float(np.exp(2 * self.scales.noise)))

    def _own(self, x_BF: Floats) -> Floats:
        amplitude = np.exp(2 * self.scales.amplitude) if self.config.smooth else 0.0
        noise = np.exp(2 * self.scales.noise)
        return 1 + amplitude + noise + (x_BF**2 * np.exp(2 * self.scales.linear_F)).sum(1)

    def _pull(self, weight_BN: Floats, x_BF: Floats, radial_BN: Floats) -> Floats:
        """Derivative by x of the covariance with all labels, weighted."""
        linear_BF = np.exp(2 * self.scales.linear_F) * (weight_BN @ self.x_NF)
        pull_BN = weight_BN * radial_BN
        apart_BF = x_BF * pull_BN.sum(1, keepdims=True) - pull_BN @ self.x_NF
        return linear_BF - np.exp(2 * self.scales.radial_F) * apart_BF


@dataclass(frozen=True, slots=True)
class _Weights:
    """A linear process as weights of a constant and the features (G), normally distributed."""

    mean_G: Floats
    spread_GG: Floats
    noise: float

    def predict(self, x_BF: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """Mean and standard deviation at x, and their derivatives by x."""
        x_BG = _with_one(x_BF)
        spread_BG = x_BG @ self.spread_GG
        std_B = np.sqrt((spread_BG * x_BG).sum(1) + self.noise)
        mean_BF = np.tile(self.mean_G[1:], (len(x_BF), 1))
        return x_BG @ self.mean_G, std_B, mean_BF, spread_BG[:, 1:] / std_B[:, None]


def _with_one(x_BF: Floats) -> Floats:
    return np.concatenate([np.ones((len(x_BF), 1)), x_BF], 1)


def _covariance(x_BF: Floats, x_NF: Floats, scales: Scales, smooth: bool) -> tuple[Floats, Floats]:
    """Covariance without noise, and its smooth part."""
    linear_BN = 1 + (x_BF * np.exp(2 * scales.linear_F)) @ x_NF.T
    if not smooth:
        return linear_BN, np.zeros_like(linear_BN)
    a_BF, b_NF = x_BF * np.exp(scales.radial_F), x_NF * np.exp(scales.radial_F)
    apart_BN = (a_BF**2).sum(1)[:, None] + (b_NF**2).sum(1) - 2 * a_BF @ b_NF.T
    radial_BN = np.exp(2 * scales.amplitude - 0.5 * np.maximum(apart_BN, 0))
    return linear_BN + radial_BN, radial_BN


def _fit(x_NF: Floats, y_N: Floats, kind_F: Ints, config: ProcessConfig) -> Scales:
    """Scales at which labels and priors are most likely together."""
    features, kinds = x_NF.shape[1], int(kind_F.max()) + 1
    centre = -0.5 * np.log(features)
    cuts = np.cumsum([kinds, kinds, features, features])
    theta = np.concatenate([np.full(2 * kinds, centre), np.zeros(2 * features), [-1.0, -1.5]])
    member_KF = np.eye(kinds)[:, kind_F]
    adam = Adam(config.rate)
    for _ in range(config.steps):
        linear_F, radial_F, rest = _slopes(x_NF, y_N, _scales(theta, cuts, kind_F), config)
        likelihood = [member_KF @ linear_F, member_KF @ radial_F, linear_F, radial_F, rest]
        own = theta[2 * kinds : -2]
        prior = [0.1 * theta[: 2 * kinds], 2 * own / (config.width**2 + own**2), 0.2 * theta[-2:]]
        theta = theta - adam.step(np.concatenate(likelihood) + np.concatenate(prior))
    return _scales(theta, cuts, kind_F)


def _scales(theta: Floats, cuts: Ints, kind_F: Ints) -> Scales:
    linear_K, radial_K, linear_F, radial_F, rest = np.split(theta, cuts)
    return Scales(linear_K[kind_F] + linear_F, radial_K[kind_F] + radial_F, rest[0], rest[1])


def _slopes(
    x_NF: Floats, y_N: Floats, scales: Scales, config: ProcessConfig
) -> tuple[Floats, Floats, Floats]:
    """Derivatives of the negative log likelihood by the logarithms of s, r, and amplitude and noise."""
    covariance_NN, radial_NN = _covariance(x_NF, x_NF, scales, config.smooth)
    noise = np.exp(2 * scales.noise)
    covariance_NN[np.diag_indices_from(covariance_NN)] += noise
    inverse_NN = np.linalg.inv(covariance_NN)
    alpha_N = inverse_NN @ y_N
    blame_NN = inverse_NN - np.outer(alpha_N, alpha_N)
    linear_F = np.exp(2 * scales.linear_F) * (x_NF * (blame_NN @ x_NF)).sum(0)
    if not config.smooth:
        return linear_F, np.zeros_like(linear_F), np.array([0.0, noise * np.trace(blame_NN)])
    weight_NN = blame_NN * radial_NN
    apart_F = (x_NF**2 * weight_NN.sum(1)[:, None]).sum(0) - (x_NF * (weight_NN @ x_NF)).sum(0)
    radial_F = -np.exp(2 * scales.radial_F) * apart_F
    return linear_F, radial_F, np.array([weight_NN.sum(), noise * np.trace(blame_NN)])
