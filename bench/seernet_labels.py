"""The 853 measured policies that SeerNet published, as spaces, levels and accuracies.

They are read from ../shared/data/seernet (ZiweiWangTHU/SeerNet, Apache-2.0); each network's vectors have a
layout of their own.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from plait.compression.space import Floats, Ints, Space
from plait.spec.policy import Knob, Slot, Tie, Unit

FOLDER = Path(__file__).parents[2] / "shared" / "data" / "seernet"
PRUNE = (0.75, 0.5, 0.25)


@dataclass(frozen=True)
class Labels:
    """One network's."""

    name: str
    space: Space
    index_ND: Ints
    accuracy_N: Floats
    """Percent."""

    @property
    def z_ND(self) -> Floats:
        """The policies, continuous."""
        return self.space.z_of(self.index_ND)


def resnet20_units(prune: tuple[float, ...] = PRUNE) -> tuple[list[Unit], list[Tie]]:
    """18 convolutions of CIFAR-10's ResNet-20, each with one number of bits for weights and activations."""
    bits = (2.0, 3.0, 4.0, 5.0)
    units = [Unit(f"conv{n}", prune=prune, weight_bits=bits, act_bits=bits) for n in range(18)]
    ties = [Tie((Slot(u.name, Knob.WEIGHT_BITS), Slot(u.name, Knob.ACT_BITS))) for u in units]
    return units, ties


def resnet20() -> Labels:
    """400 policies: 18 ratios, then 18 numbers of bits."""
    rows, accuracy_N = _read("res20_sample_result_400", "res20_acc_result_400")
    space = Space(*resnet20_units())
    at = {Knob.PRUNE: rows[:, :18], Knob.WEIGHT_BITS: rows[:, 18:]}
    return _labels("ResNet-20", space, at, accuracy_N)


def resnet18() -> Labels:
    """237 policies: 19 ratios, then bits of weights and activations by turns."""
    rows, accuracy_N = _read("resnet18_sample", "resnet18_acc")
    bits = (2.0, 4.0, 6.0, 8.0)
    space = Space([Unit(f"conv{n}", prune=PRUNE, weight_bits=bits, act_bits=bits) for n in range(19)])
    at = {Knob.PRUNE: rows[:, :19], Knob.WEIGHT_BITS: rows[:, 19::2], Knob.ACT_BITS: rows[:, 20::2]}
    return _labels("ResNet-18", space, at, accuracy_N)


def mobilenetv2() -> Labels:
    """216 policies: bits of 53 layers' weights and activations by turns, then 48 ratios."""
    rows, accuracy_N = _read("mobilenetv2_sample", "mobilenetv2_acc")
    bits = (4.0, 6.0, 8.0)
    units = [Unit(f"conv{n}", weight_bits=bits, act_bits=bits) for n in range(53)]
    # Which 48 of the 53 the ratios belong to is not published.
    space = Space([*units, *(Unit(f"cut{n}", prune=PRUNE) for n in range(48))])
    at = {Knob.WEIGHT_BITS: rows[:, :106:2], Knob.ACT_BITS: rows[:, 1:106:2], Knob.PRUNE: rows[:, 106:]}
    return _labels("MobileNetV2", space, at, accuracy_N)


def _read(rows: str, accuracy: str) -> tuple[Floats, Floats]:
    read = [np.load(FOLDER / f"{name}.npy", allow_pickle=False).astype(float) for name in (rows, accuracy)]
    return read[0], read[1].ravel()


def _labels(name: str, space: Space, at: dict[Knob, Floats], accuracy_N: Floats) -> Labels:
    """Levels from values; each gene takes the next column of its knob."""
    used = dict.fromkeys(Knob, 0)
    index_ND = np.empty((len(accuracy_N), len(space)), dtype=np.int64)
    for number, gene in enumerate(space.genes):
        values_N = at[gene.knob][:, used[gene.knob]]
        used[gene.knob] += 1
        index_ND[:, number] = np.abs(values_N[:, None] - np.array(gene.levels)).argmin(1)
    return Labels(name, space, index_ND, accuracy_N)
