"""Devices and model shapes known by name, and where their figures come from."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from plait.cost.cost import Cost
from plait.cost.fitted import Fitted
from plait.cost.roofline import Roofline
from plait.cost.step_profile import StepProfile
from plait.cost.table import Table
from plait.spec.cluster import Device
from plait.spec.errors import NotFound, UserError
from plait.spec.shape import ModelShape

GIB = 1024**3

# Peaks: vendors' data sheets, dense bf16. A100: efficiency and step time from the single-device rows of
# LoongServe's figure 3 (LWM-7B: prefill of 1,000 tokens 68.89 ms, of 10 tokens 18.58 ms; a decode step 11.38
# ms, of which 6.6 ms read the weights). H100, H200: the same efficiency; 2 ms a step is an assumption for
# engines with captured graphs. CPU: one core of an AMD EPYC of family 26 (Zen 5) in a virtual machine, torch
# 2.13, one thread: matrix products of 512 x 2048 x 2048 and a matrix-vector product over 256 MiB; a step's
# dispatch as measured for a 30-layer model.
DEVICES: Mapping[str, Device] = MappingProxyType(
    {
        device.name: device
        for device in (
            Device("a100-80g", 312e12, 2.039e12, 80 * GIB, step_ns=4_800_000, efficiency=0.83),
            Device("h100", 989e12, 3.35e12, 80 * GIB, step_ns=2_000_000, efficiency=0.83),
            Device("h200", 989e12, 4.8e12, 141 * 10**9, step_ns=2_000_000, efficiency=0.83),
            Device("cpu-core", 450e9, 24e9, 4 * GIB, step_ns=9_000_000),
        )
    }
)

_LLAMA_2_7B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
}
_LLAMA_3_8B = _LLAMA_2_7B | {
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
}
_OPT_13B = {
    "model_type": "opt",
    "hidden_size": 5120,
    "ffn_dim": 20480,
    "num_attention_heads": 40,
    "num_hidden_layers": 40,
    "vocab_size": 50272,
    "max_position_embeddings": 2048,
}
_OPT_66B = _OPT_13B | {
    "hidden_size": 9216,
    "ffn_dim": 36864,
    "num_attention_heads": 72,
    "num_hidden_layers": 64,
}
_OPT_175B = _OPT_13B | {
    "hidden_size": 12288,
    "ffn_dim": 49152,
    "num_attention_heads": 96,
    "num_hidden_layers": 96,
}
_SMOLLM2_135M = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "num_hidden_layers": 30,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
_LLAMA_13B = _LLAMA_2_7B | {
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_attention_heads": 40,
    "num_hidden_layers": 40,
    "max_position_embeddings": 2048,
}
_LLAMA_33B = _LLAMA_13B | {
    "hidden_size": 6656,
    "intermediate_size": 17920,
    "num_attention_heads": 52,
    "num_hidden_layers": 60,
}
_LLAMA_65B = _LLAMA_13B | {
    "hidden_size": 8192,
    "intermediate_size": 22016,
    "num_attention_heads": 64,
    "num_hidden_layers": 80,
}
# The sizes of the models' own config.json.
CONFIGS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "llama-2-7b": _LLAMA_2_7B,
        "llama-13b": _LLAMA_13B,
        "llama-33b": _LLAMA_33B,
        "llama-65b": _LLAMA_65B,
        "llama-3-8b": _LLAMA_3_8B,
        "opt-13b": _OPT_13B,
        "opt-66b": _OPT_66B,
        "opt-175b": _OPT_175B,
        "smollm2-135m": _SMOLLM2_135M,
    }
)


def device_named(name: str) -> Device:
    """Raises NotFound, with the known names."""
    if name not in DEVICES:
        raise NotFound(f"no device {name!r}; known are {', '.join(DEVICES)}", param="device")
    return DEVICES[name]


def shape_named(name: str) -> ModelShape:
    """A shape known by name, or that of a config.json (the file, or the folder that holds it).

    Raises:
        NotFound: no such name or file; says the known names.
        UserError: the file is no model's config.json.
    """
    if name in CONFIGS:
        return ModelShape.from_config(CONFIGS[name])
    path = Path(name) / "config.json" if Path(name).is_dir() else Path(name)
    if not path.is_file():
        raise NotFound(
            f"no model shape or config.json {name!r}; known are {', '.join(CONFIGS)}", param="model"
        )
    try:
        return ModelShape.from_config(msgspec.json.decode(path.read_bytes(), type=dict[str, Any]))
    except (OSError, msgspec.DecodeError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a model's config.json: {error}", param="model") from error


def cost_named(text: str) -> Cost:
    """A cost model from its short form: a file, or `DEVICE/MODEL` for a roofline.

    A .csv file and a JSON list are a `Table`; a JSON object is a `Fitted`, or what `plait profile` wrote.

    Raises:
        UserError: there is no such file, device or model, or the file is malformed.
    """
    path = Path(text)
    if path.exists():
        try:
            text_bytes = path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read the costs {path}: {error.strerror}", param="cost") from error
        if path.suffix == ".csv" or text_bytes.lstrip()[:1] == b"[":
            return Table.load(path)
        return StepProfile.load(path).fitted if b'"fitted"' in text_bytes else Fitted.load(path)
    device, slash, model = text.partition("/")
    if not slash:
        raise NotFound(f"no cost file {text!r}; name a file or DEVICE/MODEL, such as a100-80g/llama-2-7b")
    return Roofline(device_named(device), shape_named(model))


def llama_7b_on_a100() -> Roofline:
    """A 7B model on one A100: the example of the documentation and of the benches."""
    return Roofline(device_named("a100-80g"), shape_named("llama-2-7b"))
