"""`Features`: what a predictor reads of a policy, with gradients.

Noise of a uniform quantiser is step^2 / 12 and a step halves with each bit, so bits enter as 4^-b, in which
the loss of accuracy is linear to first order. What layers keep multiplies along a network, so ratios enter as
log(1 - ratio). Aggregates speak of the network as a whole, for each knob: of ratios the means of themselves,
log(1 - ratio) and 1 / (1 - ratio)^2, and the products of neighbours; of bits the means of themselves,
log(2^b - 1), 4^-b and 16^-b. The steepest tell how many layers stand where losses are no longer linear.
Legend: B policies, D genes, C genes of one knob, F features.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from plait.compression.space import Floats, Space
from plait.spec.policy import Knob


class Reading(Protocol):
    """Features of one space's policies, with gradients; `Features` is one."""

    @property
    def groups(self) -> list[int]:
        """For each feature the number of its kind."""

    def __call__(self, z_BD: Floats) -> Floats:
        """Features (B, F)."""

    def pull(self, z_BD: Floats, by_feature_MBF: Floats) -> Floats:
        """Derivatives by z (M, B, D) of M things whose derivatives by features are known."""


class View(Protocol):
    """What is read of policies: hashable plain data; `FeatureConfig` is one."""

    def of(self, space: Space) -> Reading:
        """Its features in a space."""


@dataclass(frozen=True, slots=True)
class FeatureConfig:
    """What is read of any network's policies."""

    physical: bool = True
    """Bits as 4^-b and ratios as log(1 - ratio); else both as they are."""
    aggregates: bool = True
    """Whole-network aggregates beside a feature for each gene."""

    def of(self, space: Space) -> "Features":
        """Its features in a space."""
        return Features(space, self)


class Features:
    """Features of one space's policies."""

    def __init__(self, space: Space, config: FeatureConfig) -> None:
        self.space, self.config = space, config
        self.knobs = sorted({gene.knob for gene in space.genes})
        self.columns = [np.array([g.knob is knob for g in space.genes]).nonzero()[0] for knob in self.knobs]

    @property
    def groups(self) -> list[int]:
        """For each feature the number of its kind: one for each knob, one for all aggregates."""
        kind = [self.knobs.index(gene.knob) for gene in self.space.genes]
        return kind + [len(self.knobs)] * (self._aggregates if self.config.aggregates else 0)

    @property
    def _aggregates(self) -> int:
        return sum(4 for knob in self.knobs)

    def __call__(self, z_BD: Floats) -> Floats:
        """Features (B, F)."""
        value_BD = self.space.values(z_BD)
        own_BD, found = np.empty_like(value_BD), []
        for knob, columns in zip(self.knobs, self.columns, strict=True):
            own_BD[:, columns], _ = self._own(knob, value_BD[:, columns])
            if self.config.aggregates:
                found += [total_B for total_B, _ in _aggregates(knob, value_BD[:, columns])]
        return np.concatenate([own_BD, *(total_B[:, None] for total_B in found)], 1)

    def pull(self, z_BD: Floats, by_feature_MBF: Floats) -> Floats:
        """Derivatives by z (M, B, D) of M things whose derivatives by features are known."""
        value_BD = self.space.values(z_BD)
        slope_MBD, place = np.empty((len(by_feature_MBF), *value_BD.shape)), len(self.space)
        for knob, columns in zip(self.knobs, self.columns, strict=True):
            _, own_BC = self._own(knob, value_BD[:, columns])
            part_MBC = own_BC * by_feature_MBF[..., columns]
            if self.config.aggregates:
                for _, each_BC in _aggregates(knob, value_BD[:, columns]):
                    part_MBC += each_BC * by_feature_MBF[..., place : place + 1]
                    place += 1
            slope_MBD[..., columns] = part_MBC
        return slope_MBD * self.space.span_D

    def _own(self, knob: Knob, value_BC: Floats) -> tuple[Floats, Floats]:
        if not self.config.physical:
            return value_BC, np.ones_like(value_BC)
        if knob is Knob.PRUNE:
            return np.log(1 - value_BC), -1 / (1 - value_BC)
        noise_BC = 4.0**-value_BC
        return noise_BC, -np.log(4) * noise_BC


def _aggregates(knob: Knob, value_BC: Floats) -> list[tuple[Floats, Floats]]:
    """Aggregates of one knob (B) and their derivatives (B, C)."""
    if knob is Knob.PRUNE:
        kept_BC = 1 - value_BC
        beside_BC = np.zeros_like(value_BC)
        beside_BC[:, :-1] += value_BC[:, 1:]
        beside_BC[:, 1:] += value_BC[:, :-1]
        means = [
            (value_BC, np.ones_like(value_BC)),
            (np.log(kept_BC), -1 / kept_BC),
            (kept_BC**-2, 2 * kept_BC**-3),
        ]
        products = [((value_BC[:, 1:] * value_BC[:, :-1]).sum(1), beside_BC)]
    else:
        power_BC = 2.0**value_BC
        rise_BC = np.log(2) * power_BC
        products = []
        means = [
            (value_BC, np.ones_like(value_BC)),
            (np.log(power_BC - 1), rise_BC / (power_BC - 1)),
            (power_BC**-2, -2 * rise_BC * power_BC**-3),
            (power_BC**-4, -4 * rise_BC * power_BC**-5),
        ]
    count = value_BC.shape[1]
    return [(each_BC.mean(1), slope_BC / count) for each_BC, slope_BC in means] + products
