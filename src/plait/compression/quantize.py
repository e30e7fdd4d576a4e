"""`quantize`: a model folder's linear layers rounded to 8 or 4 bits, as a compressed-tensors folder.

Each weight becomes the nearest whole multiple of its scale; a scale is such that the largest weight of its
output (8 bits) or group of inputs (4 bits) is half of the whole numbers' range. No data is needed.
Legend: N outputs, I inputs, G groups.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from plait.compression.export import INDEX, copy_files, described, refuse_full
from plait.model.load import load_config
from plait.model.quantised import pack_words, round_weight
from plait.spec.errors import Unsupported, UserError
from plait.spec.schemes import GROUPS, Scheme

log = logging.getLogger(__name__)

HEAD = "lm_head"
BITS = {"int8": 8, "int4": 4}


@dataclass(frozen=True, slots=True)
class QuantizeConfig:
    """What `plait quantize` was told."""

    weights: str
    """int8 (one scale an output) or int4 (one scale a group of inputs)."""
    group: int = 128
    """Inputs that share a scale in int4: 32, 64 or 128."""
    head: bool = False
    """Quantise the output head as well. Where it is tied to the embedding the folder gets a head of its
    own: rows of the embedding are looked up, never multiplied, and stay as they are."""


@dataclass(frozen=True, slots=True)
class Quantized:
    """What was written."""

    layers: int
    """Linear layers quantised."""
    bytes_before: int
    bytes_after: int


def quantize(source: Path, target: Path, config: QuantizeConfig) -> Quantized:
    """Write the model of folder `source`, quantised, into the new or empty folder `target`.

    Raises:
        UserError: an option or a folder cannot be used.
        Unsupported: the model has no linear layers of its own that could be quantised.
    """
    hf_config = load_config(source)
    if getattr(hf_config, "quantization_config", None):
        raise UserError(f"{source} is quantised already: name the folder that it was made from", "model")
    refuse_full(target)
    scheme = _scheme(config)
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(hf_config)
    layers = _layers(module, source.name, config, scheme)
    paths = sorted(source.glob("*.safetensors"))
    if not paths:
        raise UserError(f"{source} holds no *.safetensors weights; convert or pull them", "model")
    tied = hf_config.tie_word_embeddings and HEAD in layers
    embedding = next(n for n, part in module.named_modules() if part is module.get_input_embeddings())
    sources = {f"{name}.weight": name for name in layers if not (tied and name == HEAD)}
    copied = {f"{embedding}.weight": HEAD} if tied else {}
    target.mkdir(parents=True, exist_ok=True)
    names: dict[str, str] = {}
    for path in paths:
        tensors = _convert(path, sources, copied, scheme)
        names |= dict.fromkeys(tensors, path.name)
        save_file(tensors, target / path.name, metadata={"format": "pt"})
    missing = [name for name in sources.values() if f"{name}.weight_scale" not in names]
    if missing:
        raise Unsupported(f"{source} holds no {missing[0]}.weight; its names are not the model's", "model")
    _write_rest(source, target, names, scheme, ignored=[] if HEAD in layers else [HEAD], untie=tied)
    before, after = (sum(p.stat().st_size for p in f.glob("*.safetensors")) for f in (source, target))
    log.info("%d layers in %s: %d MB of weights, before %d", len(layers), target, after >> 20, before >> 20)
    return Quantized(len(layers), before, after)


def _scheme(config: QuantizeConfig) -> Scheme:
    if config.weights not in BITS:
        raise UserError(f"weights is {config.weights}; choose one of {', '.join(BITS)}", "weights")
    if config.group not in GROUPS:
        raise UserError(f"group is {config.group}; choose one of {', '.join(map(str, GROUPS))}", "group")
    bits = BITS[config.weights]
    return Scheme(bits, config.group if bits == 4 else None, packed=True, targets=("Linear",))


def _layers(module: nn.Module, name: str, config: QuantizeConfig, scheme: Scheme) -> list[str]:
    """Names of the linear layers to quantise."""
    linear = {n: part for n, part in module.named_modules() if type(part) is nn.Linear}
    if not linear.keys() - {HEAD}:
        raise Unsupported(f"{name} has no linear layers of torch's own that could be quantised", "model")
    if config.head and HEAD not in linear:
        raise Unsupported(f"{name} has no output head named {HEAD}: leave the head as it is", "lm_head")
    layers = [n for n in linear if config.head or n != HEAD]
    for layer in layers:
        inputs = linear[layer].in_features
        if scheme.group and inputs % scheme.group:
            fits = [str(size) for size in GROUPS if not inputs % size]
            hint = f"choose {' or '.join(fits)}" if fits else "choose int8"
            raise UserError(
                f"groups of {scheme.group} do not divide the {inputs} inputs of {layer}: {hint}", "group"
            )
    return layers


def _convert(
    path: Path, sources: dict[str, str], copied: dict[str, str], scheme: Scheme
) -> dict[str, Tensor]:
    """The tensors of one file, quantised where `sources` or `copied` says under which layer's name.

    Those of `copied` are also kept as they are. All others become bf16, as the activations are.
    """
    tensors: dict[str, Tensor] = {}
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118 - no mapping
            tensor = file.get_tensor(name)
            layer = sources.get(name, copied.get(name))
            if layer is not None:
                rounded = round_weight(tensor, scheme)
                tensors[f"{layer}.weight_packed"] = pack_words(rounded.codes_NI, scheme.bits)
                tensors[f"{layer}.weight_scale"] = rounded.scales_NG
                tensors[f"{layer}.weight_shape"] = torch.tensor(tensor.shape)
            if name not in sources:
                tensors[name] = tensor.bfloat16() if tensor.is_floating_point() else tensor
    return tensors


def _write_rest(
    source: Path, target: Path, names: dict[str, str], scheme: Scheme, ignored: list[str], untie: bool
) -> None:
    """Write config.json and the index of several files, copy everything but weights."""
    copy_files(source, target)
    config = json.loads((source / "config.json").read_text())
    config.pop("torch_dtype", None)
    config |= {"dtype": "bfloat16", "quantization_config": described([scheme], ignored)}
    if untie:
        config["tie_word_embeddings"] = False
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if len(set(names.values())) > 1:
        size = sum(path.stat().st_size for path in target.glob("*.safetensors"))
        index = {"metadata": {"total_size": size}, "weight_map": names}
        (target / INDEX).write_text(json.dumps(index, indent=2) + "\n")
