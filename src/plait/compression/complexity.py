"""Costs of policies, with gradients, for whole batches of continuous policies: BOPs, MACs, bytes, tables.

A cost is closed-form: a sum of products of numbers that are linear in z (`Products`), the largest of several
(`Largest`), or a table (`Table`). No network is built. All grow with every coordinate of z.
Legend: B policies, D genes, L terms, F factors of a term, V levels.

Check: conv layers at 224 x 224, stem at 8 x 8 bits; ResNet-18 has 1857.1, 116.1 and 34.7 GBOPs at FP32, W8A8
and W4A4, which HAWQ-V3 publishes as 1858, 116 and 34.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from plait.compression.space import Floats, Ints, Space
from plait.spec.policy import Knob, Slot

FULL_BITS = 32.0
"""Bits of what no policy quantises."""
SCALE_BITS = 32.0
"""A scale for each output channel of a quantised weight."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution or linear layer, unpruned, as costs see it."""

    name: str
    macs: int
    """Multiply-adds for one input."""
    weights: int
    """Elements of the weight."""
    inputs: int
    """Elements read for one input."""
    outputs: int
    """Elements written for one input."""
    channels: int
    """Output channels."""
    unit: str | None = None
    """Whose bits it has."""
    cut_by: str | None = None
    """The unit whose ratio removes its output channels."""
    fed_by: str | None = None
    """The unit whose ratio removes its input channels."""
    depthwise: bool = False
    """Inputs and outputs are the same channels, so a ratio counts once in its work and weights."""
    fixed_bits: float = FULL_BITS
    """Bits of weights and activations where no unit sets them."""


@dataclass(frozen=True, slots=True)
class LayerTime:
    """Nanoseconds of a whole layer, in parts that shrink with what is left of its channels."""

    fixed: float
    output: float
    """Shrinks with its outputs."""
    input: float
    """Shrinks with its inputs."""
    both: float
    """Shrinks with the product of both."""

    @property
    def parts(self) -> tuple[float, float, float, float]:
        """All four."""
        return self.fixed, self.output, self.input, self.both


class Cost(Protocol):
    """What a policy costs."""

    name: str
    unit: str

    def __call__(self, z_BD: Floats) -> tuple[Floats, Floats]:
        """The cost (B) and its gradient (B, D) at z."""


@dataclass(frozen=True)
class Products:
    """sum over L of weight_L * product over F of (offset_FL + z @ slope_FDL)."""

    name: str
    unit: str
    weight_L: Floats
    offset_FL: Floats
    slope_FDL: Floats

    def terms(self, z_BD: Floats) -> tuple[Floats, Floats]:
        """Each term (B, L) and its gradient (B, L, D)."""
        factor_FBL = self.offset_FL[:, None] + z_BD @ self.slope_FDL
        count = len(factor_FBL)
        others_FBL = np.stack([np.delete(factor_FBL, f, 0).prod(0) for f in range(count)]) * self.weight_L
        return self.weight_L * factor_FBL.prod(0), np.einsum("fbl,fdl->bld", others_FBL, self.slope_FDL)

    def __call__(self, z_BD: Floats) -> tuple[Floats, Floats]:
        factor_FBL = self.offset_FL[:, None] + z_BD @ self.slope_FDL
        slope_FLD = self.slope_FDL.transpose(0, 2, 1)
        gradient_BD = np.zeros_like(z_BD)
        for f in range(len(factor_FBL)):
            others_BL = self.weight_L * np.delete(factor_FBL, f, 0).prod(0)
            gradient_BD += others_BL @ slope_FLD[f]
        return (self.weight_L * factor_FBL.prod(0)).sum(-1), gradient_BD


@dataclass(frozen=True)
class Largest:
    """A smooth maximum of the terms, never below the true one: heat * log sum exp(term / heat)."""

    name: str
    unit: str
    products: Products
    share: float = 0.02
    """Temperature, as a share of the largest term of the least compressed policy."""

    @cached_property
    def heat(self) -> float:
        """Temperature."""
        whole_1D = np.ones((1, self.products.slope_FDL.shape[1]))
        return self.share * float(self.products.terms(whole_1D)[0].max())

    def __call__(self, z_BD: Floats) -> tuple[Floats, Floats]:
        term_BL, gradient_BLD = self.products.terms(z_BD)
        top_B1 = term_BL.max(-1, keepdims=True)
        power_BL = np.exp((term_BL - top_B1) / self.heat)
        total_B1 = power_BL.sum(-1, keepdims=True)
        smooth_B = (top_B1 + self.heat * np.log(total_B1))[:, 0]
        return smooth_B, np.einsum("bl,bld->bd", power_BL / total_B1, gradient_BLD)


@dataclass(frozen=True)
class Table:
    """A measured cost for each level of each gene, added up; between levels it is linear in z."""

    name: str
    unit: str
    level_z_DV: Floats
    """Where the levels lie, ascending; padded with the last."""
    cost_DV: Floats
    base: float = 0.0
    """What no gene changes."""

    def __call__(self, z_BD: Floats) -> tuple[Floats, Floats]:
        genes, levels = self.cost_DV.shape
        column = np.arange(genes)
        place_BD = np.clip((z_BD[..., None] >= self.level_z_DV).sum(-1) - 1, 0, levels - 2)
        low_BD, high_BD = self.level_z_DV[column, place_BD], self.level_z_DV[column, place_BD + 1]
        rise_BD = self.cost_DV[column, place_BD + 1] - self.cost_DV[column, place_BD]
        wide_BD = high_BD - low_BD
        slope_BD = np.divide(rise_BD, wide_BD, out=np.zeros_like(rise_BD), where=wide_BD > 0)
        at_BD = self.cost_DV[column, place_BD] + slope_BD * (z_BD - low_BD)
        return self.base + at_BD.sum(-1), slope_BD


def bops(space: Space, layers: Sequence[Layer]) -> Products:
    """Bit operations of one input, in 1e9: multiply-adds x weight bits x activation bits."""
    return _products("bops", "GBOPs", space, [(x.macs / 1e9, (_w(x), _a(x), *_kept(x))) for x in layers])


def macs(space: Space, layers: Sequence[Layer]) -> Products:
    """Multiply-adds of one input, in 1e6."""
    return _products("macs", "MMACs", space, [(x.macs / 1e6, _kept(x)) for x in layers])


def weight_bytes(space: Space, layers: Sequence[Layer]) -> Products:
    """Bytes of all weights at their bits, and of a scale for each output channel of quantised ones."""
    terms = [(x.weights / 8, (_w(x), *_kept(x))) for x in layers]
    scaled = [x for x in layers if x.unit is not None or x.fixed_bits < FULL_BITS]
    terms += [(x.channels * SCALE_BITS / 8, _ratio(x.cut_by)) for x in scaled]
    return _products("size", "bytes", space, terms)


def activation_bytes(space: Space, layers: Sequence[Layer]) -> Largest:
    """Bytes of the largest input of any layer, at the bits at which that layer reads it."""
    terms = [(x.inputs / 8, (_a(x), *_ratio(x.fed_by))) for x in layers]
    return Largest("activations", "bytes", _products("activations", "bytes", space, terms))


def layer_times(
    space: Space, layers: Sequence[Layer], times: Sequence[LayerTime], constant_ns: float
) -> Products:
    """Nanoseconds of one input: a constant, and measured times of layers at the channels that are left."""
    terms: list[tuple[float, tuple[Factor, ...]]] = [(constant_ns, ())]
    for layer, took in zip(layers, times, strict=True):
        terms.append((took.fixed, ()))
        terms.append((took.output, _ratio(layer.cut_by)))
        terms.append((took.input, _ratio(layer.fed_by)))
        terms.append((took.both, _kept(layer)))
    return _products("latency", "ns", space, terms)


def kv_bytes(space: Space, values: Sequence[tuple[str, int]]) -> Products:
    """Bytes of keys and values of one token: for each unit, how many values it keeps."""
    terms = [(count / 8, ((Slot(unit, Knob.KV_BITS), FULL_BITS),)) for unit, count in values]
    return _products("kv", "bytes", space, terms)


def table(name: str, unit: str, space: Space, cost: Callable[[int, int], float], base: float = 0.0) -> Table:
    """A table cost from `cost(gene, level)`.

    Padding repeats the last level, whose slope is zero.
    """
    cost_DV = np.empty(space.levels_DV.shape)
    for gene, count in enumerate(space.count_D):
        row = [cost(gene, level) for level in range(count)]
        cost_DV[gene] = row + [row[-1]] * (cost_DV.shape[1] - len(row))
    level_z_DV = (space.levels_DV - space.first_D[:, None]) / space.span_D[:, None]
    return Table(name, unit, level_z_DV, cost_DV, base)


def at_levels(cost: Cost, space: Space, index_BD: Ints) -> Floats:
    """The cost of discrete policies."""
    return cost(space.z_of(np.atleast_2d(index_BD)))[0]


Factor = tuple[Slot | None, float]
"""A slot whose value multiplies a term, and the value where no policy sets it.

Of a ratio, the share that is kept multiplies."""


def _w(layer: Layer) -> Factor:
    return (Slot(layer.unit, Knob.WEIGHT_BITS) if layer.unit else None), layer.fixed_bits


def _a(layer: Layer) -> Factor:
    return (Slot(layer.unit, Knob.ACT_BITS) if layer.unit else None), layer.fixed_bits


def _ratio(unit: str | None) -> tuple[Factor, ...]:
    return ((Slot(unit, Knob.PRUNE), 0.0),) if unit else ()


def _kept(layer: Layer) -> tuple[Factor, ...]:
    return _ratio(layer.cut_by) + (() if layer.depthwise else _ratio(layer.fed_by))


def _products(
    name: str, unit: str, space: Space, terms: Sequence[tuple[float, tuple[Factor, ...]]]
) -> Products:
    """Products from terms of a weight and its factors."""
    most = max(len(factors) for _, factors in terms)
    offset_FL = np.ones((most, len(terms)))
    slope_FDL = np.zeros((most, len(space), len(terms)))
    for place, (_, factors) in enumerate(terms):
        for f, (slot, default) in enumerate(factors):
            gene = space.gene_of.get(slot) if slot else None
            value = default if slot is None else space.fixed.get(slot, default)
            sign, shift = (-1.0, 1.0) if slot and slot.knob is Knob.PRUNE else (1.0, 0.0)
            if gene is None:
                offset_FL[f, place] = shift + sign * value
            else:
                offset_FL[f, place] = shift + sign * space.first_D[gene]
                slope_FDL[f, gene, place] = sign * space.span_D[gene]
    return Products(name, unit, np.array([weight for weight, _ in terms]), offset_FL, slope_FDL)
