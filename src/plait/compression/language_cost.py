"""Costs of a decoder's policies, with gradients: bytes of weights, bytes of KV, time of a decode step.

A cost is a base and a sum of terms; a term is a product of tables, each over one gene and linear between its
levels. So what a policy costs at its levels is exact, scales and removed blocks counted, and what lies
between has a gradient.
Legend: B policies, D genes, L terms, F factors of a term, V levels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from plait.compression.language import FULL_BITS, Decoder, Linear, Storage
from plait.compression.space import Floats, Ints, Space
from plait.spec.policy import Knob, Slot
from plait.spec.schemes import held_bits

SCALE_BYTES = 2
"""A scale is bf16."""
Factor = tuple[Slot, Callable[[float], float], float]
"""A slot, what its value multiplies the term by, and the value where no policy sets it."""
Term = tuple[float, tuple[Factor, ...]]


@dataclass(frozen=True)
class Tabled:
    """base + sum over L of the product over F of a table of one gene."""

    name: str
    unit: str
    base: float
    level_z_DV: Floats
    """Where the levels lie, ascending; padded with the last."""
    gene_LF: Ints
    value_LFV: Floats

    @cached_property
    def _of_gene_FLD(self) -> Floats:
        return np.eye(len(self.level_z_DV))[self.gene_LF].transpose(1, 0, 2)

    def __call__(self, z_BD: Floats) -> tuple[Floats, Floats]:
        """The cost (B) and its gradient (B, D) at z."""
        genes, levels = self.level_z_DV.shape
        column_D, term_L = np.arange(genes), np.arange(len(self.gene_LF))
        place_BD = np.clip((z_BD[..., None] >= self.level_z_DV).sum(-1) - 1, 0, levels - 2)
        low_BD, high_BD = (self.level_z_DV[column_D, place_BD + up] for up in (0, 1))
        wide_BD = high_BD - low_BD
        per_BD = np.divide(1.0, wide_BD, out=np.zeros_like(wide_BD), where=wide_BD > 0)
        factor_FBL, slope_FBL = [], []
        for f, gene_L in enumerate(self.gene_LF.T):
            at_BL = place_BD[:, gene_L]
            first_BL = self.value_LFV[term_L, f, at_BL]
            slope_BL = (self.value_LFV[term_L, f, at_BL + 1] - first_BL) * per_BD[:, gene_L]
            factor_FBL.append(first_BL + slope_BL * (z_BD - low_BD)[:, gene_L])
            slope_FBL.append(slope_BL)
        gradient_BD = np.zeros_like(z_BD)
        for f, slope_BL in enumerate(slope_FBL):
            others = [factor for g, factor in enumerate(factor_FBL) if g != f]
            gradient_BD += np.prod([slope_BL, *others], 0) @ self._of_gene_FLD[f]
        return self.base + np.prod(factor_FBL, 0).sum(-1), gradient_BD


def weight_bytes(space: Space, decoder: Decoder, storage: Storage, order: Sequence[int]) -> Tabled:
    """Bytes of all weights in a folder; what is not a block's linear layer is bf16.

    Args:
        order: all blocks, those first that a smaller depth leaves out first.
    """
    terms: list[Term] = [(decoder.rest * FULL_BITS / 8, ())]
    for x in decoder.linears:
        # A scale of an output serves all inputs that are kept: it does not shrink with them.
        grouped = _bits(x, lambda b, x=x: _bytes(x, b, storage, grouped=True))
        whole = _bits(x, lambda b, x=x: _bytes(x, b, storage, grouped=False))
        there = alive(decoder, order, x.block)
        rows, columns = kept_of(decoder, x)
        terms.append((1.0, (grouped, *rows, *columns, there)))
        terms.append((1.0, (whole, *rows, there)))
    return tabled("size", "bytes", space, terms)


def memory_bytes(space: Space, decoder: Decoder, storage: Storage, order: Sequence[int]) -> Tabled:
    """Bytes of all weights in the engine's memory, where they are kept in 4, 8 or 16 bits."""
    kept = weight_bytes(space, decoder, Kept(storage.group, storage.grouped_bits), order)
    return replace(kept, name="memory")


@dataclass(frozen=True, slots=True)
class Kept(Storage):
    """Weights as they lie in memory."""

    def width(self, bits: float) -> float:
        """See `Storage`."""
        return float(held_bits(bits))


def kv_bytes(space: Space, decoder: Decoder, order: Sequence[int]) -> Tabled:
    """Bytes of keys and values of one token; at 8 bits a head has a float32 scale for keys and for values."""
    terms = []
    for block in range(decoder.count):
        values = 2 * decoder.kv_heads * decoder.head_dim
        slot = Slot(decoder.attention(block), Knob.KV_BITS)

        def size(bits: float, values: int = values) -> float:
            return values * (bits / 8 + (4 / decoder.head_dim if bits < FULL_BITS else 0))

        first = (slot, size, FULL_BITS)
        terms.append((1.0, (first, *_heads(decoder, block), alive(decoder, order, block))))
    return tabled("kv", "bytes", space, terms)


def alive(decoder: Decoder, order: Sequence[int], block: int) -> Factor:
    """1 where a depth keeps a block, 0 where it does not."""
    rank = list(order).index(block)
    return Slot(decoder.blocks, Knob.PRUNE), lambda share: float(rank >= round(share * decoder.count)), 0.0


def tabled(name: str, unit: str, space: Space, terms: Sequence[Term]) -> Tabled:
    """The cost of some terms. Factors that no gene moves go into the term's weight; terms of one gene become
    one table, and so do terms that differ in their first table only."""
    base, merged = 0.0, {}
    for weight, factors in terms:
        tables = []
        for slot, value_of, default in factors:
            gene = space.gene_of.get(slot)
            if gene is None:
                weight *= value_of(space.fixed.get(slot, default))
            else:
                levels = space.levels_DV[gene]
                tables.append((gene, tuple(value_of(level) for level in levels)))
        if not tables:
            base += weight
            continue
        (gene, first), rest = tables[0], tuple(tables[1:])
        total_V = merged.setdefault((gene, rest), np.zeros(len(first)))
        total_V += weight * np.array(first)
    most = max((1 + len(rest) for _, rest in merged), default=1)
    gene_LF = np.zeros((len(merged), most), dtype=np.int64)
    value_LFV = np.ones((len(merged), most, space.levels_DV.shape[1]))
    for place, ((gene, rest), total_V) in enumerate(merged.items()):
        for f, (g, value_V) in enumerate(((gene, total_V), *rest)):
            gene_LF[place, f], value_LFV[place, f, : len(value_V)] = g, value_V
    level_z_DV = (space.levels_DV - space.first_D[:, None]) / space.span_D[:, None]
    return Tabled(name, unit, base, level_z_DV, gene_LF, value_LFV)


def _bytes(linear: Linear, bits: float, storage: Storage, *, grouped: bool) -> float:
    """Bytes of a whole layer that shrink with its inputs (`grouped`), or those that do not."""
    scales = SCALE_BYTES * storage.scales(linear, bits)
    shrink = bits <= storage.grouped_bits
    if grouped:
        return linear.outputs * linear.inputs * storage.width(bits) / 8 + (scales if shrink else 0.0)
    return 0.0 if shrink else scales


def _bits(linear: Linear, value_of: Callable[[float], float]) -> Factor:
    return Slot(linear.name, Knob.WEIGHT_BITS), value_of, FULL_BITS


def kept_of(decoder: Decoder, linear: Linear) -> tuple[tuple[Factor, ...], tuple[Factor, ...]]:
    """What removes its outputs, and what removes its inputs."""
    if not decoder.prunable:
        return (), ()
    mlp: tuple[Factor, ...] = ((Slot(decoder.mlp(linear.block), Knob.PRUNE), _left, 0.0),)
    heads = _heads(decoder, linear.block)
    of_kind: dict[str, tuple[tuple[Factor, ...], tuple[Factor, ...]]] = {
        "gate_proj": (mlp, ()),
        "up_proj": (mlp, ()),
        "down_proj": ((), mlp),
        "o_proj": ((), heads),
    }
    return of_kind.get(linear.kind, (heads, ()))


def _heads(decoder: Decoder, block: int) -> tuple[Factor, ...]:
    return ((Slot(decoder.attention(block), Knob.PRUNE), _left, 0.0),)


def _left(share: float) -> float:
    return 1 - share
