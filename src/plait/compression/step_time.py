"""Time of a decode step of compressed decoders: a few measured ones, and the cost that follows for others.

A step of one row reads every weight once. Its time is taken to be a constant (output head, the engine's own
work) and, for each kind of weights, so many nanoseconds a byte: those of 2 to 4 bits are kept in 4, those of
5 to 8 in 8, the rest in 16. What a block costs beside its weights is in these figures, as blocks are alike.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from plait.compression.export import write_folder
from plait.compression.language import FULL_BITS, Decoder, Linear
from plait.compression.language_apply import Carver, Plan
from plait.compression.language_cost import Tabled, Term, alive, kept_of, tabled
from plait.compression.space import Floats, Space
from plait.spec.errors import UserError
from plait.spec.policy import Choice, CompressionPolicy, Knob, Slot
from plait.spec.schemes import held_bits

KERNELS = (4, 8, 16)
"""Bits in which weights are kept in memory."""
Mix = tuple[tuple[float, ...], float]
"""Bits that blocks get in turn, and the share of the blocks that is left out."""
MIXES: tuple[Mix, ...] = (
    ((16.0,), 0.0),
    ((8.0,), 0.0),
    ((4.0,), 0.0),
    ((8.0,), 0.5),
    ((4.0,), 0.5),
    ((4.0, 8.0), 0.0),
    ((8.0, 16.0), 0.5),
)
"""What is measured; the first four are as many as there are constants."""


@dataclass(frozen=True, slots=True)
class StepTime:
    """What a decode step of one row is made of."""

    constant_ns: float
    byte_ns: tuple[float, float, float]
    """Nanoseconds a byte of weights kept in 4, 8 and 16 bits."""
    worst: float
    """Largest relative error of the fit on what it was fitted to."""


def measure_steps(
    carver: Carver,
    source: Path,
    scratch: Path,
    timed: Callable[[Path], float],
    mixes: Sequence[Mix] = MIXES,
) -> StepTime:
    """Write a few compressed decoders, have their steps timed, and fit.

    Args:
        source: the reference's folder.
        scratch: where folders are written; those that are there are not written again.
        timed: nanoseconds of a decode step of a folder's model on the engine.
        mixes: what is measured; the first four suffice.

    Raises:
        UserError: policies of 4 and of 8 bits cannot be made.
    """
    missing = {4.0, 8.0} - set(carver.config.bits)
    if missing:
        raise UserError("a time budget needs 4 and 8 among the bits: allow them", "bits")
    rows, times = [], []
    for number, (bits, depth) in enumerate(mixes):
        policy = _mixed(carver.decoder, bits, depth)
        folder = scratch / f"step-{number}"
        if not (folder / "model.safetensors").exists():
            write_folder(carver, policy, source, folder)
        rows.append(_row(carver.decoder, carver.plan(policy)))
        times.append(timed(folder))
    return fit(np.array(rows), np.array(times))


def fit(row_NF: Floats, ns_N: Floats) -> StepTime:
    """Constants that are not negative and err least, relative to each time."""
    scale_F = np.maximum(row_NF.max(0), 1.0)
    x_NF, free = row_NF / scale_F / ns_N[:, None], list(range(row_NF.shape[1]))
    found_F = np.zeros(row_NF.shape[1])
    while True:
        solved, *_ = np.linalg.lstsq(x_NF[:, free], np.ones(len(ns_N)), rcond=None)
        if (solved >= 0).all():
            break
        free.pop(int(solved.argmin()))  # what would be negative counts for nothing
    found_F[free] = solved
    worst = float(np.abs(x_NF @ found_F - 1).max())
    constant, *byte = (found_F / scale_F).tolist()
    return StepTime(constant, (byte[0], byte[1], byte[2]), worst)


def step_time(space: Space, decoder: Decoder, order: Sequence[int], times: StepTime) -> Tabled:
    """Nanoseconds of a decode step of one row."""
    terms: list[Term] = [(times.constant_ns, ())]
    for x in decoder.linears:
        bits = (Slot(x.name, Knob.WEIGHT_BITS), lambda b, x=x: _ns(x, b, times), FULL_BITS)
        rows, columns = kept_of(decoder, x)
        terms.append((1.0, (bits, *rows, *columns, alive(decoder, order, x.block))))
    return tabled("tpot", "ns", space, terms)


def whole_ns(decoder: Decoder, times: StepTime) -> float:
    """Nanoseconds of a decode step of the whole model in bf16, as `step_time` has it."""
    return times.constant_ns + sum(_ns(x, FULL_BITS, times) for x in decoder.linears)


def _ns(linear: Linear, bits: float, times: StepTime) -> float:
    """Of a whole layer. More bits are taken to be no faster than fewer: costs grow with every gene."""
    weight_ns = [kept / 8 * byte_ns for kept, byte_ns in zip(KERNELS, times.byte_ns, strict=True)]
    return linear.outputs * linear.inputs * max(weight_ns[: KERNELS.index(held_bits(bits)) + 1])


def _row(decoder: Decoder, plan: Plan) -> list[float]:
    """What constants are multiplied by: 1 and bytes of each kind."""
    held = dict.fromkeys(KERNELS, 0.0)
    for x in decoder.linears:
        if x.name in plan.bits:
            kept = held_bits(plan.bits[x.name])
            held[kept] += x.outputs * x.inputs * kept / 8
    return [1.0, *held.values()]


def _mixed(decoder: Decoder, bits: tuple[float, ...], depth: float) -> CompressionPolicy:
    """Bits in turn, block by block; whole blocks left out."""
    gone = round(depth * decoder.count) / decoder.count
    chosen = [(x.name, Choice(weight_bits=bits[x.block % len(bits)])) for x in decoder.linears]
    return CompressionPolicy(((decoder.blocks, Choice(prune=gone)), *chosen))
