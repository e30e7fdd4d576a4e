"""`QuantisedWeight`: a linear layer's weight as whole numbers and scales, also in a folder's tensors.

Legend: N outputs, I inputs, G groups of inputs that share a scale, W 32-bit words.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from plait.spec.errors import Unsupported, UserError
from plait.spec.schemes import Quantisation, Scheme

PARTS = ("weight_packed", "weight_scale", "weight_shape")
REFUSED = ("weight_zero_point", "weight_g_idx", "input_scale", "output_scale", "weight_global_scale")
"""Tensors of a layer that change what its weights mean, and that no scheme we read has."""


@dataclass(frozen=True, slots=True)
class QuantisedWeight:
    """`codes * scale` is the weight."""

    codes_NI: Tensor
    """int8; of b bits: -2^(b-1) to 2^(b-1) - 1."""
    scales_NG: Tensor
    """float32 or bf16."""
    scheme: Scheme

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight [N, I] that the numbers stand for, rounded to `dtype`."""
        inputs = self.codes_NI.shape[1]
        scales_NI = self.scales_NG.float().repeat_interleave(self.scheme.group or inputs, 1)[:, :inputs]
        return (self.codes_NI * scales_NI).to(dtype)


def round_weight(weight_NI: Tensor, scheme: Scheme) -> QuantisedWeight:
    """The nearest weight of whole numbers; scales are bf16."""
    outputs, inputs = weight_NI.shape
    grouped_NGJ = weight_NI.float().view(outputs, -1, scheme.group or inputs)
    half = 2 ** (scheme.bits - 1)
    largest_NG = grouped_NGJ.abs().amax(-1)
    # A scale of zero would leave nothing to divide by; its weights are all zero, whatever it is.
    scales_NG = torch.where(largest_NG > 0, largest_NG / (half - 0.5), 1.0).bfloat16()
    codes = (grouped_NGJ / scales_NG[..., None].float()).round().clamp(-half, half - 1)
    return QuantisedWeight(codes.to(torch.int8).view(outputs, inputs), scales_NG, scheme)


def round_layers(
    module: nn.Module, quantisation: Quantisation, dtype: torch.dtype
) -> dict[str, QuantisedWeight]:
    """Round the linear layers that have a scheme, and give them the weights that their numbers stand for; all
    parameters become `dtype`."""
    found = {}
    for name, part in module.named_modules():
        scheme = quantisation.scheme_of(name) if type(part) is nn.Linear else None
        if scheme is not None:
            found[name] = rounded = round_weight(part.weight, scheme)
            part.weight.data = rounded.dense(dtype)
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)
    return found


def pack_words(codes_NI: Tensor, bits: int) -> Tensor:
    """int8 codes as int32 words [N, W] of `bits` each, the first lowest, with zero in their middle.

    There are no gaps: where 32 is no multiple of `bits`, some codes begin in one word and end in the next.
    """
    if 32 % bits or bits == 2:
        return _dense_words(codes_NI, bits)
    per_word = 32 // bits
    filled = torch.nn.functional.pad(codes_NI, (0, -codes_NI.shape[1] % per_word), value=-(2 ** (bits - 1)))
    if bits == 8:
        return (filled ^ -128).view(torch.int32)
    pairs = (filled + 8).unflatten(1, (-1, 2))
    return (pairs[..., 0] | pairs[..., 1] << 4).contiguous().view(torch.int32)


def _dense_words(codes_NI: Tensor, bits: int) -> Tensor:
    raised = (codes_NI.short() + 2 ** (bits - 1)).to(torch.uint8).numpy()
    planes = np.unpackbits(raised[..., None], axis=2, bitorder="little")[..., :bits].reshape(len(raised), -1)
    packed = np.packbits(planes, axis=1, bitorder="little")
    filled = np.pad(packed, ((0, 0), (0, -packed.shape[1] % 4)))
    return torch.from_numpy(filled).view(torch.int32)


def unpack_words(words_NW: Tensor, bits: int, inputs: int) -> Tensor:
    """The codes [N, inputs] that `pack_words` packed."""
    if 32 % bits or bits == 2:
        planes = np.unpackbits(words_NW.contiguous().numpy().view(np.uint8), axis=1, bitorder="little")
        planes = planes[:, : inputs * bits].reshape(len(planes), inputs, bits)
        raised = np.packbits(planes, axis=2, bitorder="little")[..., 0]
        return (torch.from_numpy(raised).short() - 2 ** (bits - 1)).to(torch.int8)
    whole = words_NW.contiguous().view(torch.int8)
    if bits == 8:
        return (whole ^ -128)[:, :inputs].contiguous()
    pairs = torch.stack((whole & 15, whole >> 4 & 15), -1).flatten(1)
    return pairs[:, :inputs] - 8


def all_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder as they are in its files."""
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    return tensors


def read_weights(
    folder: Path, quantisation: Quantisation, dtype: torch.dtype
) -> tuple[dict[str, Tensor], dict[str, QuantisedWeight]]:
    """All tensors of a folder as if nothing were quantised, and the quantised layers by name.

    Raises:
        UserError: tensors are missing or do not fit each other.
        Unsupported: tensors that no scheme we read has.
    """
    tensors = all_weights(folder)
    weights = {}
    for name in sorted(tensors):
        layer, _, part = name.rpartition(".")
        if part in REFUSED:
            raise Unsupported(f"the folder holds {name}, which plait does not compute with", "model")
        if part == "weight_scale":
            weights[layer] = _take(tensors, layer, quantisation.scheme_of(layer))
    left = [name for name in sorted(tensors) if name.rpartition(".")[2] in PARTS]
    if left:
        raise UserError(f"the folder holds {left[0]} without the tensors that belong to it", "model")
    for layer, weight in weights.items():
        tensors[f"{layer}.weight"] = weight.dense(dtype)
    return tensors, weights


def _take(tensors: dict[str, Tensor], layer: str, scheme: Scheme | None) -> QuantisedWeight:
    """Take a layer's tensors out of all."""
    if scheme is None:
        raise UserError(
            f"the folder holds {layer}.weight_scale, but no group of config.json's quantization_config "
            f"has {layer} among its targets (or `ignore` names it): mend config.json",
            "model",
        )
    names = ("weight_packed", "weight_shape") if scheme.packed else ("weight",)
    missing = [f"{layer}.{name}" for name in names if f"{layer}.{name}" not in tensors]
    if missing:
        raise UserError(
            f"the folder lacks {', '.join(missing)}, which config.json's format calls for", "model"
        )
    scales_NG = tensors.pop(f"{layer}.weight_scale")
    kept = tensors.pop(f"{layer}.{names[0]}")
    if scheme.packed:
        outputs, inputs = tensors.pop(f"{layer}.weight_shape").tolist()
        shape = (outputs, -(-inputs * scheme.bits // 32))
        if kept.dtype == torch.int32 and kept.shape == shape:
            kept = unpack_words(kept, scheme.bits, inputs)
    groups = -(-kept.shape[-1] // scheme.group) if scheme.group else 1
    if kept.dtype != torch.int8 or scales_NG.shape != (len(kept), groups):
        raise UserError(
            f"{layer}: weights {tuple(kept.shape)} {kept.dtype} and scales {tuple(scales_NG.shape)} do not "
            f"fit {scheme.bits} bits in groups of {scheme.group or 'all inputs'}",
            "model",
        )
    exact = scales_NG.dtype in (torch.float32, torch.bfloat16)
    return QuantisedWeight(kept, scales_NG if exact else scales_NG.float(), scheme)


def check_layers(
    module: nn.Module, quantisation: Quantisation, weights: Mapping[str, QuantisedWeight]
) -> None:
    """Refuse a folder whose quantised layers are not exactly those that its config.json names.

    Raises:
        UserError: one of them lacks the other's layer.
        Unsupported: a quantised layer is no linear layer of this model.
    """
    linear = {name: part for name, part in module.named_modules() if type(part) is nn.Linear}
    for name, weight in weights.items():
        if name not in linear or linear[name].weight.shape != weight.codes_NI.shape:
            raise Unsupported(f"{name} is quantised, but it is no linear layer of this model", "model")
    for name in linear:
        if quantisation.scheme_of(name) is not None and name not in weights:
            raise UserError(
                f"config.json's quantization_config has {name} among its targets, but the folder holds no "
                f"{name}.weight_scale: name it in `ignore`, or add its tensors",
                "model",
            )
    if "lm_head" in weights and module.config.tie_word_embeddings:
        raise UserError(
            "config.json ties lm_head to the embedding, but the folder holds a quantised lm_head: "
            "set tie_word_embeddings to false",
            "model",
        )
