"""`Quantisation`: which layers of a folder are quantised, and how: config.json's `quantization_config`.

The format is compressed-tensors (https://github.com/vllm-project/compressed-tensors). What it can say and
we cannot carry out is refused by the name of its field; a field that we do not know is refused as well.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from plait.spec.errors import Unsupported

FORMATS = ("pack-quantized", "int-quantized")
GROUPS = (32, 64, 128)
"""Inputs that may share a scale in weights of at most `GROUPED` bits."""
GROUPED = 4
"""Weights of so many bits and fewer are computed with as 4-bit ones, others as 8-bit ones."""
NEXT_STEP = "quantise it again, for example with `plait quantize`"
TELL_NOTHING = {"version", "global_compression_ratio", "quant_method", "format", "ignore", "config_groups"}
"""Fields of the configuration that are facts about the past, or that are read elsewhere."""
MUST_BE_EMPTY = {"kv_cache_scheme", "sparsity_config", "transform_config", "moe_sparsity_config"}
WEIGHT_FACTS = {"observer", "observer_kwargs", "zp_dtype"}
"""Fields of a weight scheme that say how its numbers were found, not what they are."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """How the weights of some layers are kept: whole numbers of `bits`, around zero, and their scales."""

    bits: int
    """2 to 8."""
    group: int | None
    """Inputs that share a scale; None: an output has one scale."""
    packed: bool
    """Stored as 32-bit words in `weight_packed`; else as int8 in `weight`."""
    targets: tuple[str, ...]
    """Names of layers, `re:` patterns of names, or the class Linear."""


@dataclass(frozen=True, slots=True)
class Quantisation:
    """What a folder says about its quantised layers."""

    schemes: tuple[Scheme, ...]
    ignore: tuple[str, ...]

    def scheme_of(self, name: str) -> Scheme | None:
        """The scheme of a linear layer; None: it is kept as it was."""
        if any(_matches(name, pattern) for pattern in self.ignore):
            return None
        return next((s for s in self.schemes if any(_matches(name, t) for t in s.targets)), None)


def held_bits(bits: float) -> int:
    """In how many bits the engine keeps weights of so many."""
    return 4 if bits <= GROUPED else 8 if bits <= 8 else 16


def read_quantisation(config: Mapping[str, Any] | None) -> Quantisation | None:
    """Read `quantization_config`; None if the folder has none.

    Raises:
        Unsupported: it asks for what the engine does not have; names the field and the next step.
    """
    if not config:
        return None
    if config.get("quant_method") != "compressed-tensors":
        _refuse("quant_method", config.get("quant_method"), "only compressed-tensors is read")
    if config.get("quantization_status", "compressed") != "compressed":
        _refuse("quantization_status", config["quantization_status"], "only compressed weights are read")
    for name in sorted(config.keys() - TELL_NOTHING - {"quantization_status"}):
        if name not in MUST_BE_EMPTY:
            _refuse(name, config[name], "plait does not know this field")
        if config[name]:
            _refuse(name, config[name], "plait does not do this")
    groups = config.get("config_groups") or {}
    if not groups:
        _refuse("config_groups", groups, "it names no layers")
    schemes = tuple(_scheme(name, group, config.get("format")) for name, group in groups.items())
    return Quantisation(schemes, tuple(config.get("ignore") or ()))


def _scheme(name: str, group: Any, format_of_all: str | None) -> Scheme:
    if not isinstance(group, Mapping):
        _refuse(name, group, "schemes by name are not read, only written out")
    unknown = group.keys() - {"targets", "weights", "input_activations", "output_activations", "format"}
    for field in sorted(unknown):
        _refuse(f"{name}.{field}", group[field], "plait does not know this field")
    for field in ("input_activations", "output_activations"):
        if group.get(field):
            _refuse(f"{name}.{field}", "set", "activations stay bf16, only weights are quantised")
    kept = group.get("format") or format_of_all
    if kept not in FORMATS:
        _refuse(f"{name}.format", kept, f"only {' and '.join(FORMATS)} are read")
    targets = tuple(group.get("targets") or ())
    for target in targets:
        if "." not in target and not target.startswith("re:") and target not in ("Linear", "lm_head"):
            _refuse(f"{name}.targets", target, "only layers of class Linear are quantised")
    bits, size = _sizes(f"{name}.weights", group.get("weights") or {})
    if bits < 8 and kept == "int-quantized":
        _refuse(f"{name}.format", kept, "weights of less than 8 bits come as pack-quantized")
    return Scheme(bits, size, kept == "pack-quantized", targets)


def _sizes(name: str, weights: Mapping[str, Any]) -> tuple[int, int | None]:
    """(bits, group) of a weight scheme."""
    wanted: dict[str, tuple[Any, tuple[Any, ...], str]] = {
        "num_bits": (None, tuple(range(2, 9)), "2 to 8 bits are read"),
        "type": ("int", ("int",), "whole numbers are read"),
        "symmetric": (True, (True,), "weights are read without zero points"),
        "dynamic": (False, (False,), "scales of weights are fixed"),
        "strategy": (None, ("channel", "group"), "scales stand for an output or a group of inputs"),
        "block_structure": (None, (None,), "scales stand for an output or a group of inputs"),
        "actorder": (None, (None, False, "weight", "static"), "inputs are read in their own order"),
        "scale_dtype": (
            None,
            (None, "torch.float32", "torch.bfloat16", "torch.float16"),
            "scales are floats",
        ),
    }
    for field, (default, known, why) in wanted.items():
        value = weights.get(field, default)
        if value not in known:
            _refuse(f"{name}.{field}", value, why)
    for field in sorted(weights.keys() - wanted.keys() - WEIGHT_FACTS - {"group_size"}):
        _refuse(f"{name}.{field}", weights[field], "plait does not know this field")
    bits, size = weights["num_bits"], weights.get("group_size")
    if weights["strategy"] == "channel":
        if size not in (None, -1):
            _refuse(f"{name}.group_size", size, "with strategy channel there are no groups")
        return bits, None
    if bits > GROUPED:
        why = f"weights of more than {GROUPED} bits have one scale an output: use strategy channel"
        _refuse(f"{name}.strategy", "group", why)
    if size not in GROUPS:
        _refuse(f"{name}.group_size", size, f"groups of {', '.join(map(str, GROUPS))} inputs are read")
    return bits, size


def _refuse(field: str, value: Any, why: str) -> None:
    raise Unsupported(
        f"config.json's quantization_config.{field} is {value!r}: {why}; {NEXT_STEP}", "model"
    ) from None


def _matches(name: str, target: str) -> bool:
    if target.startswith("re:"):
        return re.match(target.removeprefix("re:"), name) is not None
    return target in ("Linear", name)
