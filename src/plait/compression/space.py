"""`Space`: all policies that may be chosen, in three views.

- *continuous* z in [0, 1]: what the optimiser moves; 0 is the most compressed level of a gene, 1 the least;
- *discrete*: the index of a level for each gene, and `CompressionPolicy`, its executable form;
- *features*: what a predictor reads (`features.py`).

A gene is one coordinate: all slots that are tied together. Every cost grows with every coordinate.
Legend: B policies, D genes, N neighbours.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from plait.spec.errors import UserError
from plait.spec.policy import Choice, CompressionPolicy, Knob, Slot, Tie, Unit

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Gene:
    """Slots that share one value, and the levels that it may have, most compressed first."""

    slots: tuple[Slot, ...]
    levels: tuple[float, ...]

    @property
    def knob(self) -> Knob:
        """What its first slot sets; a tie of weight and activation bits sets both."""
        return self.slots[0].knob

    @property
    def name(self) -> str:
        """Its first slot, for messages."""
        return f"{self.slots[0].unit}.{self.slots[0].knob}"


class Space:
    """Units and ties as genes; slots with one level are fixed and have none."""

    def __init__(self, units: Sequence[Unit], ties: Sequence[Tie] = ()) -> None:
        """Raises UserError where tied slots have no level in common, or a tie names an unknown slot."""
        self.units = tuple(units)
        self.ties = tuple(ties)
        groups = [(slots, _common(self.units, slots)) for slots in _grouped(self.units, self.ties)]
        self.genes = tuple(Gene(slots, levels) for slots, levels in groups if len(levels) > 1)
        self.fixed = {slot: levels[0] for slots, levels in groups if len(levels) == 1 for slot in slots}
        self.gene_of = {slot: number for number, gene in enumerate(self.genes) for slot in gene.slots}
        self.first_D = np.array([gene.levels[0] for gene in self.genes])
        self.span_D = np.array([gene.levels[-1] - gene.levels[0] for gene in self.genes])
        self.count_D = np.array([len(gene.levels) for gene in self.genes], dtype=np.int64)
        # Padded with the last level, so that the nearest one is found for all genes at once.
        longest = max((len(gene.levels) for gene in self.genes), default=1)
        padded = [gene.levels + (gene.levels[-1],) * (longest - len(gene.levels)) for gene in self.genes]
        self.levels_DV = np.array(padded).reshape(len(self.genes), longest)

    def __len__(self) -> int:
        return len(self.genes)

    @cached_property
    def digest(self) -> str:
        """A hash that is equal for equal spaces; labels carry it."""
        told = [[[f"{s.unit}.{s.knob}" for s in gene.slots], gene.levels] for gene in self.genes]
        fixed = {f"{slot.unit}.{slot.knob}": value for slot, value in self.fixed.items()}
        return hashlib.sha256(json.dumps([told, fixed]).encode()).hexdigest()[:16]

    def values(self, z_BD: Floats) -> Floats:
        """Ratios and bits at z, linear between the first and the last level."""
        return self.first_D + z_BD * self.span_D

    def z_of(self, index_BD: Ints) -> Floats:
        """Where levels lie in [0, 1]."""
        return (self.levels_DV[np.arange(len(self)), index_BD] - self.first_D) / self.span_D

    def index_of(self, z_BD: Floats) -> Ints:
        """The nearest level of each gene."""
        return np.abs(self.values(z_BD)[..., None] - self.levels_DV).argmin(-1)

    def rounded(self, z_BD: Floats) -> Floats:
        """z at the nearest levels."""
        return self.z_of(self.index_of(z_BD))

    def decode(self, index_D: Ints) -> CompressionPolicy:
        """The policy that levels stand for."""
        value = dict(self.fixed)
        value |= {slot: self.genes[g].levels[index_D[g]] for slot, g in self.gene_of.items()}
        return CompressionPolicy(
            tuple((u.name, Choice(**{s.knob.value: value[s] for s in u.slots})) for u in self.units)
        )

    def encode(self, policy: CompressionPolicy) -> Ints:
        """Levels of a policy.

        Raises:
            UserError: a value is no level of its gene, or slots that are tied differ.
        """
        index_D = np.empty(len(self), dtype=np.int64)
        chosen = dict(policy.choices)
        for number, gene in enumerate(self.genes):
            values = {chosen.get(slot.unit, Choice()).value(slot.knob) for slot in gene.slots}
            if len(values) > 1:
                raise UserError(f"{gene.name} is tied, but its slots have {len(values)} values", "policy")
            (value,) = values
            if value not in gene.levels:
                raise UserError(f"{gene.name} is {value}; choose one of {gene.levels}", "policy")
            index_D[number] = gene.levels.index(value)
        return index_D

    def sample(self, rng: np.random.Generator, count: int) -> Ints:
        """Policies whose levels are drawn independently and evenly."""
        return rng.integers(0, self.count_D, size=(count, len(self)))

    def uniform(self) -> Ints:
        """One policy for each combination of a common level per knob: genes of a knob get the level whose
        share of the way from first to last is nearest."""
        knobs = sorted({gene.knob for gene in self.genes})
        shares = [
            np.linspace(0, 1, max(len(g.levels) for g in self.genes if g.knob is knob)) for knob in knobs
        ]
        mesh = np.stack(np.meshgrid(*shares, indexing="ij"), -1).reshape(-1, len(knobs))
        column_D = [knobs.index(gene.knob) for gene in self.genes]
        return self.index_of(mesh[:, column_D])

    def neighbours(self, index_D: Ints, *, up: bool = False) -> Ints:
        """Policies with one gene one level lower (or higher), for each gene that is not at its end."""
        step = 1 if up else -1
        moved_DD = index_D + step * np.eye(len(self), dtype=np.int64)
        diagonal_D = np.diagonal(moved_DD)
        return moved_DD[(diagonal_D >= 0) & (diagonal_D < self.count_D)]


def _grouped(units: Sequence[Unit], ties: Sequence[Tie]) -> list[tuple[Slot, ...]]:
    """Slots that are tied directly or through others, in the order of the units."""
    slots = [slot for unit in units for slot in unit.slots]
    group = {slot: [slot] for slot in slots}
    for tie in ties:
        unknown = [slot for slot in tie.slots if slot not in group]
        if unknown:
            raise UserError(
                f"a tie names {unknown[0].unit}.{unknown[0].knob}, which cannot be chosen", "ties"
            )
        for slot in tie.slots[1:]:
            one, other = group[tie.slots[0]], group[slot]
            if one is not other:
                one += other
                group |= dict.fromkeys(other, one)
    place = {slot: number for number, slot in enumerate(slots)}
    heads = [slot for slot in slots if min(group[slot], key=place.__getitem__) == slot]
    return [tuple(sorted(group[slot], key=place.__getitem__)) for slot in heads]


def _common(units: Sequence[Unit], slots: tuple[Slot, ...]) -> tuple[float, ...]:
    by_name = {unit.name: unit for unit in units}
    levels = [by_name[slot.unit].levels(slot.knob) for slot in slots]
    shared = tuple(level for level in levels[0] if all(level in other for other in levels[1:]))
    if not shared:
        raise UserError(
            f"{slots[0].unit}.{slots[0].knob} is tied to slots that share no level with it", "ties"
        )
    return shared
