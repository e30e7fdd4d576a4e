"""What an engine can load: illegal levels are taken out, and ties put in, before anything is searched.

So every policy of the space that is left is legal for its target, and none has to be thrown away later.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from plait.compression.space import Space
from plait.spec.errors import UserError
from plait.spec.policy import Knob, Slot, Tie, Unit

Levels = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """What an engine has kernels for. None: anything."""

    name: str
    weight_bits: Levels | None = None
    act_bits: Levels | None = None
    kv_bits: Levels | None = None
    equal_widths: bool = False
    """All units are cut alike: the engine's configuration has one width for all layers."""
    equal_bits: bool = False
    """Weights and activations of a unit have the same number of bits."""
    equal_kv: bool = False
    """Keys and values of all layers have the same number of bits."""
    equal_heads: bool = False
    """All layers keep the same number of KV heads."""
    groups: tuple[int, ...] = (32, 64, 128)
    """Inputs that may share a scale."""
    grouped_bits: float = 4.0
    """Up to so many bits they do; above, an output has one scale."""
    fused: bool = False
    """Layers that are computed in one product (query, key, value; gate, up) have the same bits."""


READ = (2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 16.0)
"""Weight bits of a compressed-tensors folder that plait and transformers read."""
TARGETS = {
    target.name: target
    for target in (
        Target("simulated"),
        Target("plait", READ, (16.0,), (8.0, 16.0), equal_kv=True, equal_heads=True, fused=True),
        Target("transformers", READ, (16.0,), (16.0,), equal_widths=True, equal_heads=True),
        Target("vllm", (4.0, 8.0, 16.0), (16.0,), (16.0,), equal_widths=True, equal_heads=True, fused=True),
        Target("vllm-cpu", (4.0, 16.0), (16.0,), (16.0,), equal_widths=True, equal_heads=True, fused=True),
        Target(
            "gguf",
            (4.0, 5.0, 8.0, 16.0),
            (16.0,),
            (16.0,),
            equal_widths=True,
            equal_heads=True,
            groups=(32,),
            grouped_bits=8.0,
        ),
        Target("int8", weight_bits=(8.0,), act_bits=(8.0,)),
        Target("onnx", weight_bits=(4.0, 8.0), act_bits=(8.0,)),
    )
}
"""By name. `simulated` is arithmetic that no kernel does. Weights of 2 and 3 bits are as fast in plait
as those of 4, and those of 5 to 7 as fast as those of 8: fewer bits save bytes on disk, not time. vLLM's CPU
build (0.32.0) has a kernel for weights of 4 bits and none for those of 8 beside activations of 16. `int8` and
`onnx` are for image networks as ONNX files: engines compute in 8 bits, and unpack weights of 4."""


def restrict(units: Sequence[Unit], ties: Sequence[Tie], target: Target) -> Space:
    """The legal part of a space.

    Raises:
        UserError: a unit has no legal level of a knob; names both.
    """
    legal = [_legal(unit, target) for unit in units]
    more = []
    if target.equal_widths:
        more.append(Tie(tuple(Slot(unit.name, Knob.PRUNE) for unit in legal if unit.prune)))
    if target.equal_bits:
        pairs = [unit for unit in legal if unit.weight_bits and unit.act_bits]
        more += [Tie((Slot(u.name, Knob.WEIGHT_BITS), Slot(u.name, Knob.ACT_BITS))) for u in pairs]
    if target.equal_kv:
        more.append(Tie(tuple(Slot(unit.name, Knob.KV_BITS) for unit in legal if unit.kv_bits)))
    return Space(legal, [*ties, *(tie for tie in more if len(tie.slots) > 1)])


def _legal(unit: Unit, target: Target) -> Unit:
    allowed = {
        Knob.WEIGHT_BITS: target.weight_bits,
        Knob.ACT_BITS: target.act_bits,
        Knob.KV_BITS: target.kv_bits,
    }
    for knob, levels in allowed.items():
        had = unit.levels(knob)
        if levels is None or not had:
            continue
        left = tuple(level for level in had if level in levels)
        if not left:
            raise UserError(
                f"{target.name} has no kernel for {unit.name} at {knob} {had}: allow one of {levels}",
                "target",
            )
        unit = replace(unit, **{knob.value: left})
    return unit
