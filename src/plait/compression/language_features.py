"""What a predictor reads of a decoder's policy: the errors of its layers, added up by kind and place.

Errors come from `Carver`: KL in nats a token, to second order, of one change by itself. They would add up if
layers did not act on each other's errors; how they do, the predictor learns. A feature is the logarithm of a
sum of errors: of all, and of each kind of unit in each part of the depth. Errors are estimates, and the least
of many sums of estimates is too low; so there are also sums of all in which layers' own estimates are drawn
towards what is usual for their size (`tempered`).
Legend: B policies, D genes, V levels, F features, M things whose derivatives are pulled back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from plait.compression.language import Decoder
from plait.compression.language_apply import Carver
from plait.compression.space import Floats, Space
from plait.spec.policy import Knob, Slot

TINY = 1e-7
"""Nats that are added to every error: nothing is without one."""
PARTS = 5
"""Of the depth, in which kinds are told apart."""
TEMPERS = (1.0, 0.5, 0.0)
"""Of the sums of all."""
INPUTS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
"""Layers that read what a norm gives; the others read what their own block computed."""


@dataclass(frozen=True)
class ErrorConfig:
    """A view of policies: the error of each level of each gene, and each gene's kind."""

    errors: tuple[tuple[float, ...], ...]
    kinds: tuple[str, ...]
    sizes: tuple[float, ...]
    """Weights whose bits a gene sets; 0: it sets something else."""

    def tempered(self, temper: float) -> Floats:
        """Factors (D) of the genes' errors that draw their errors a weight towards the geometric mean: 1
        leaves them, 0 makes them all alike."""
        size_D = np.array(self.sizes)
        error_D = np.array([row[0] for row in self.errors]) + TINY
        sized_D = size_D > 0
        log_D = np.log(error_D / np.where(sized_D, size_D, 1.0))
        apart_D = log_D - log_D[sized_D].mean() if sized_D.any() else log_D
        return np.where(sized_D, np.exp((temper - 1) * apart_D), 1.0)

    def scaled(self, factors: Mapping[str, Sequence[float]]) -> "ErrorConfig":
        """The errors of each kind multiplied by its factors: of the lowest level, and of all others."""
        both = zip(self.errors, self.kinds, strict=True)
        scaled = [(row[0] * factors[k][0], *(e * factors[k][1] for e in row[1:])) for row, k in both]
        # What rises with the level in truth is taken to stay as it is: costs do rise.
        return replace(self, errors=tuple(tuple(np.maximum.accumulate(row[::-1])[::-1]) for row in scaled))

    def of(self, space: Space) -> "ErrorFeatures":
        """Its features in a space."""
        return ErrorFeatures(space, self)


class ErrorFeatures:
    """Logarithms of summed errors, with gradients."""

    def __init__(self, space: Space, config: ErrorConfig) -> None:
        self.space = space
        longest = space.levels_DV.shape[1]
        padded = [(*row, *[row[-1]] * (longest - len(row))) for row in config.errors]
        self.log_DV = np.log(np.array(padded) + TINY)
        self.level_z_DV = (space.levels_DV - space.first_D[:, None]) / space.span_D[:, None]
        names = sorted(set(config.kinds))
        members = [[float(kind == name) for kind in config.kinds] for name in names]
        self.member_FD = np.array([*(config.tempered(temper) for temper in TEMPERS), *members])

    @property
    def groups(self) -> list[int]:
        """Sums of all are a kind of their own."""
        return [0] * len(TEMPERS) + [1] * (len(self.member_FD) - len(TEMPERS))

    def __call__(self, z_BD: Floats) -> Floats:
        """Features (B, F)."""
        return np.log(self._errors(z_BD)[0] @ self.member_FD.T)

    def pull(self, z_BD: Floats, by_feature_MBF: Floats) -> Floats:
        """Derivatives by z (M, B, D)."""
        error_BD, slope_BD = self._errors(z_BD)
        by_sum_MBF = by_feature_MBF / (error_BD @ self.member_FD.T)
        return (by_sum_MBF @ self.member_FD) * slope_BD

    def total(self, z_BD: Floats) -> Floats:
        """All errors added up (B), nats a token."""
        return self._errors(z_BD)[0].sum(1)

    def _errors(self, z_BD: Floats) -> tuple[Floats, Floats]:
        """Errors and their derivatives; between levels their logarithm is linear."""
        column_D = np.arange(len(self.space))
        last = self.log_DV.shape[1] - 2
        place_BD = np.clip((z_BD[..., None] >= self.level_z_DV).sum(-1) - 1, 0, last)
        low_BD, high_BD = (self.level_z_DV[column_D, place_BD + up] for up in (0, 1))
        wide_BD = high_BD - low_BD
        rise_BD = self.log_DV[column_D, place_BD + 1] - self.log_DV[column_D, place_BD]
        slope_BD = np.divide(rise_BD, wide_BD, out=np.zeros_like(rise_BD), where=wide_BD > 0)
        error_BD = np.exp(self.log_DV[column_D, place_BD] + slope_BD * (z_BD - low_BD))
        return error_BD, error_BD * slope_BD


def error_config(space: Space, carver: Carver) -> ErrorConfig:
    """Errors of all levels of all genes, from the reference's own activations."""
    linear = {x.name: x for x in carver.decoder.linears}

    def error(slot: Slot, level: float) -> float:
        if slot.knob is Knob.WEIGHT_BITS:
            return carver.bits_error(linear[slot.unit], level)
        if slot.knob is Knob.KV_BITS:
            return _kv_error(carver, slot.unit, level)
        return _cut_error(carver, slot.unit, level)

    errors = tuple(
        tuple(sum(error(slot, level) for slot in gene.slots) for level in gene.levels) for gene in space.genes
    )
    kinds = tuple(_kind(carver.decoder, gene.slots) for gene in space.genes)
    weights = {x.name: float(x.outputs * x.inputs) for x in carver.decoder.linears}
    sizes = tuple(
        sum(weights[slot.unit] for slot in gene.slots if slot.knob is Knob.WEIGHT_BITS)
        for gene in space.genes
    )
    return ErrorConfig(errors, kinds, sizes)


def _kind(decoder: Decoder, slots: tuple[Slot, ...]) -> str:
    """Of a gene: what it sets and, where it belongs to one block, in which part of the depth."""
    first = slots[0]
    blocks = {_block(decoder, slot.unit) for slot in slots}
    where = "" if len(blocks) > 1 or None in blocks else f" {min(blocks) * PARTS // decoder.count}"
    if first.knob is Knob.WEIGHT_BITS:
        return f"{first.unit.rpartition('.')[2]}{where}"
    what = first.unit.rpartition(".")[2] if _block(decoder, first.unit) is not None else "depth"
    return f"{what} {first.knob}"


def _block(decoder: Decoder, unit: str) -> int | None:
    own = unit.removeprefix(f"{decoder.blocks}.").split(".")[0]
    return int(own) if own.isdigit() else None


def _cut_error(carver: Carver, unit: str, share: float) -> float:
    decoder = carver.decoder
    if unit == decoder.blocks:
        gone = carver.order[: round(share * decoder.count)]
        return sum(float(carver.calibration.lost[f"{decoder.blocks}.{block}"]) for block in gone)
    kind = "down_proj" if unit == decoder.mlp(_block(decoder, unit) or 0) else "o_proj"
    reader = next(x for x in decoder.linears if x.name.startswith(f"{unit}.") and x.kind == kind)
    return carver.cut_error(reader, round(reader.inputs * (1 - share)))


def _kv_error(carver: Carver, unit: str, bits: float) -> float:
    """Rounding noise of keys and values as a share of what the layer that reads them writes."""
    if bits >= 16:
        return 0.0
    reader = next(x for x in carver.decoder.linears if x.name.startswith(f"{unit}.") and x.kind not in INPUTS)
    return carver.output_energy(reader) * 4.0 ** (1 - bits)
