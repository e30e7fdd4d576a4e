"""Compressed decoders as folders: smaller dense ones, and compressed-tensors with bits that differ by layer.

Every folder is plain config.json and safetensors, without code of its own. Widths that differ from layer to
layer have no place in transformers' configurations: they are written as `plait_layers`, and the type of keys
and values as `plait_kv_dtype`, which plait reads.
"""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait.compression.language_apply import Carver, Plan
from plait.model.quantised import QuantisedWeight, pack_words
from plait.model.weights_file import write
from plait.spec.errors import UserError
from plait.spec.policy import CompressionPolicy
from plait.spec.schemes import Scheme
from plait.spec.shape import KV_FIELD

log = logging.getLogger(__name__)

INDEX = "model.safetensors.index.json"
COPIED = (".json", ".jinja", ".model", ".txt")
"""Files beside the weights: tokenizer, chat template, generation defaults."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """A compressed decoder in its new layers' names."""

    dense: dict[str, Tensor]
    """Everything that is not quantised, float32."""
    quantised: dict[str, QuantisedWeight]
    """Linear layers by name."""


def write_folder(carver: Carver, policy: CompressionPolicy, source: Path, target: Path) -> int:
    """Write the compressed decoder into the new or empty folder `target`; returns the bytes of its weights.

    Args:
        source: the reference's folder.

    Raises:
        UserError: the folder is not empty, or the policy's KV heads differ from layer to layer.
    """
    refuse_full(target)
    target.mkdir(parents=True, exist_ok=True)
    plan, pieces = carver.plan(policy), collect(carver, policy)
    tensors = {name: tensor.bfloat16() for name, tensor in pieces.dense.items()}
    for name, weight in pieces.quantised.items():
        tensors[f"{name}.weight_packed"] = pack_words(weight.codes_NI, weight.scheme.bits)
        tensors[f"{name}.weight_scale"] = weight.scales_NG
        tensors[f"{name}.weight_shape"] = torch.tensor(weight.codes_NI.shape)
    copy_files(source, target)
    config = new_config(carver, plan, json.loads((source / "config.json").read_text()))
    if pieces.quantised:
        ignored = [n.removesuffix(".weight") for n in pieces.dense if _is_linear(carver, n)]
        config["quantization_config"] = described(_schemes(pieces.quantised), [*ignored, "lm_head"])
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (target / "policy.json").write_text(policy.json() + "\n")
    write(target / "model.safetensors", tensors)
    return (target / "model.safetensors").stat().st_size


def refuse_full(target: Path) -> None:
    """Raise UserError where `target` is no new or empty folder."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists and is not empty: name a new folder", "out")


def copy_files(source: Path, target: Path) -> None:
    """Copy what stands beside the weights."""
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix in COPIED and path.name not in (INDEX, "config.json"):
            shutil.copyfile(path, target / path.name)


def described(schemes: Sequence[Scheme], ignored: Sequence[str]) -> dict[str, Any]:
    """The `quantization_config` of a compressed-tensors folder, a group for each scheme."""
    groups = {}
    for number, scheme in enumerate(schemes):
        weights = {
            "num_bits": scheme.bits,
            "type": "int",
            "symmetric": True,
            "strategy": "group" if scheme.group else "channel",
            "group_size": scheme.group,
            "dynamic": False,
        }
        groups[f"group_{number}"] = {"targets": list(scheme.targets), "weights": weights}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": list(ignored),
    }


def collect(carver: Carver, policy: CompressionPolicy) -> Pieces:
    """The compressed decoder's tensors; blocks that stay are numbered anew."""
    plan, decoder = carver.plan(policy), carver.decoder
    place = {block: number for number, block in enumerate(plan.alive)}
    linear = {x.name: x for x in decoder.linears}
    dense, quantised, seen = {}, {}, set()
    for name, tensor in carver.reference.state_dict().items():
        if tensor.data_ptr() in seen:
            continue  # an output head that is the embedding
        seen.add(tensor.data_ptr())
        layer, _, kind = name.rpartition(".")
        block, renamed = _renamed(decoder.blocks, name, place)
        if block is not None and block not in place:
            continue
        if layer not in linear:
            dense[renamed] = tensor
        elif kind == "bias":
            dense[renamed] = tensor[carver.rows(linear[layer], plan)]
        else:
            rounded = carver.quantised(linear[layer], plan)
            if rounded is None:
                dense[renamed] = carver.dense(linear[layer], plan)
            else:
                quantised[renamed.removesuffix(".weight")] = rounded
    return Pieces(dense, quantised)


def new_config(carver: Carver, plan: Plan, config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json of the new sizes.

    Raises:
        UserError: layers would keep different numbers of KV heads, which nothing loads.
    """
    decoder, told = carver.decoder, dict(config)
    told.pop("torch_dtype", None)
    told |= {"dtype": "bfloat16", "num_hidden_layers": len(plan.alive)}
    if set(plan.kv_bits.values()) == {8.0}:
        told[KV_FIELD] = "int8"
    if told.get("layer_types"):
        told["layer_types"] = [told["layer_types"][block] for block in plan.alive]
    if not decoder.prunable:
        return told
    heads = sorted(set(plan.kv_heads.values()))
    if len(heads) > 1:
        raise UserError(f"layers keep {heads} KV heads, and engines load one number: tie them", "heads")
    told |= {
        "num_key_value_heads": heads[0],
        "num_attention_heads": heads[0] * decoder.group,
        "head_dim": decoder.head_dim,
        "intermediate_size": max(plan.widths.values()),
    }
    if len(set(plan.widths.values())) > 1:
        told["plait_layers"] = [{"intermediate_size": plan.widths[block]} for block in plan.alive]
    return told


def _renamed(blocks: str, name: str, place: Mapping[int, int]) -> tuple[int | None, str]:
    """The block that a tensor belongs to, and its name there after renumbering."""
    if not name.startswith(f"{blocks}."):
        return None, name
    number, _, rest = name.removeprefix(f"{blocks}.").partition(".")
    return int(number), f"{blocks}.{place.get(int(number), -1)}.{rest}"


def _is_linear(carver: Carver, name: str) -> bool:
    """Whether a tensor that is not quantised is a linear layer's weight."""
    kinds = {x.kind for x in carver.decoder.linears}
    layer, _, kind = name.rpartition(".")
    inside = layer.startswith(f"{carver.decoder.blocks}.")
    return kind == "weight" and inside and layer.rpartition(".")[2] in kinds


def _schemes(quantised: Mapping[str, QuantisedWeight]) -> list[Scheme]:
    """One for each form, with the names of its layers."""
    names: dict[Scheme, list[str]] = {}
    for name, weight in quantised.items():
        names.setdefault(weight.scheme, []).append(name)
    return [replace(scheme, targets=tuple(names[scheme])) for scheme in sorted(names, key=lambda s: s.bits)]
