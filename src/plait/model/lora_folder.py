"""A folder with a low-rank adapter, as peft writes it: what is read of it before any tensor is. No torch
here: drivers ask, too.

    adapter_config.json         rank, alpha and what else peft may do; whatever we do not do is refused
    adapter_model.safetensors   A [rank, inputs] and B [outputs, rank] of each layer that has one
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plait.spec.errors import NotFound, Unsupported, UserError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LARGEST_RANK = 256
LARGEST_ALPHA = 1e6
LARGEST_CONFIG_BYTES = 1 << 20
LARGEST_WEIGHTS_BYTES = 4 << 30
HARMLESS = frozenset(
    (
        *(
            "peft_type",
            "peft_version",
            "auto_mapping",
            "base_model_name_or_path",
            "revision",
            "inference_mode",
        ),
        *("task_type", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
        *("r", "lora_alpha", "use_rslora", "lora_dropout", "fan_in_fan_out", "init_lora_weights", "bias"),
        *("megatron_core", "qalora_group_size", "ensure_weight_tying"),
    )
)
"""Settings that are read here, or that say nothing about what the stored factors mean."""
KEEPS_BASE = (True, False, None, "gaussian", "orthogonal", "eva")
"""Ways to begin a training after which the base model's weights are still its own."""


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """What the factors of an adapter mean."""

    rank: int
    scale: float
    """The product of the factors counts so many times."""


def settings_of(config: bytes, where: str) -> LoraSettings:
    """Read adapter_config.json.

    Args:
        where: names the file in errors.

    Raises:
        UserError: it is no such file.
        Unsupported: it asks for something that we do not do.
    """
    try:
        raw = json.loads(config)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON: {error}; save or copy the adapter again", "lora") from error
    if not isinstance(raw, dict):
        raise UserError(f"{where} holds no JSON object: save or copy the adapter again", "lora")
    if reason := _refusal(raw):
        raise Unsupported(f"{where}: {reason}", "lora")
    rank, alpha = raw.get("r"), raw.get("lora_alpha")
    if type(rank) is not int or rank < 1 or type(alpha) not in (int, float) or not 0 < alpha <= LARGEST_ALPHA:
        raise UserError(
            f"{where}: r and lora_alpha are not both numbers over 0: save the adapter again", "lora"
        )
    if rank > LARGEST_RANK:
        raise Unsupported(f"{where}: r is over {LARGEST_RANK}, the largest rank that plait serves", "lora")
    return LoraSettings(rank, alpha / (rank**0.5 if raw.get("use_rslora") else rank))


def _refusal(raw: Mapping[str, Any]) -> str | None:
    """Why an adapter with these settings cannot be served; None if it can."""
    if raw.get("peft_type") != "LORA":
        return "its peft_type is not LORA: plait serves no other adapters"
    if raw.get("task_type") not in (None, "CAUSAL_LM"):
        return "its task_type is not CAUSAL_LM: plait serves no other adapters"
    if raw.get("use_dora"):
        return "it is a DoRA (use_dora), which changes norms of weights as well: train it without"
    if raw.get("modules_to_save"):
        return (
            "it brings whole layers (modules_to_save), which an adapter beside others cannot: leave them out"
        )
    if raw.get("bias", "none") != "none":
        return "it trains biases (bias), which an adapter beside others cannot: set bias to none"
    init = raw.get("init_lora_weights", True)
    if init not in KEEPS_BASE:
        return "its init_lora_weights changes the base model's weights: convert it to a plain LoRA"
    others = [key for key, value in raw.items() if value and key not in HARMLESS]
    if others:
        return f"it asks for {', '.join(sorted(others)[:5])[:200]}, which plait does not do: train it without"
    return None


def files_of(folder: Path) -> tuple[bytes, bytes]:
    """The bytes of both files.

    Raises:
        NotFound: one of them is not there.
        UserError: it cannot be read, or is larger than any of its kind.
    """
    return _read(folder / CONFIG, LARGEST_CONFIG_BYTES), _read(folder / WEIGHTS, LARGEST_WEIGHTS_BYTES)


def digest_of(config: bytes, weights: bytes) -> str:
    """Of the bytes of both files, hex."""
    digest = hashlib.blake2b(config, digest_size=16)
    digest.update(hashlib.blake2b(weights).digest())
    return digest.hexdigest()


def _read(path: Path, most_bytes: int) -> bytes:
    try:
        size = path.stat().st_size
        if size > most_bytes:
            raise UserError(f"{path} has {size} bytes, more than any adapter's: name another folder", "lora")
        return path.read_bytes()
    except FileNotFoundError as error:
        pickled = path.with_name("adapter_model.bin").is_file() and path.name == WEIGHTS
        hint = (
            "save it as safetensors: pickles are never read" if pickled else "name a folder that peft saved"
        )
        raise NotFound(f"{path} is not there: {hint}", "lora") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}", "lora") from error
