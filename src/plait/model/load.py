"""Loads a transformers model for serving, or says in a sentence why it cannot be served."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging as transformers_logging

from plait.model.attend import NAME
from plait.model.quantised import QuantisedWeight, all_weights, check_layers, read_weights
from plait.model.weights_file import files_of
from plait.model.widths import load_uneven, widths_of
from plait.spec.errors import NotFound, Unsupported, UserError
from plait.spec.schemes import Quantisation, read_quantisation

LAYER_TYPES = frozenset(("full_attention", "sliding_attention", "attention"))
ROPE_TYPES = frozenset(("default", "linear", "llama3", "yarn"))


def load_config(folder: Path) -> Any:
    """The transformers configuration of a model that we can serve.

    Raises:
        NotFound: no config.json.
        Unsupported: the model needs what the engine does not have.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise NotFound(f"{folder} holds no config.json", "model")
    raw = _object(path)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        reason = _refusal(config)
    except ValueError as error:
        hint = "it needs code of its own, which plait never runs" if "auto_map" in raw else str(error)
        kind = raw.get("model_type")
        raise Unsupported(
            f"{path}: transformers does not know the model type {kind!r}: {hint}", "model"
        ) from error
    except Exception as error:  # wrong fields are told by errors of any class
        raise UserError(
            f"{path} is no configuration that transformers takes ({error}): pull or copy it again", "model"
        ) from error
    if reason:
        raise Unsupported(f"{folder.name} ({config.model_type}) cannot be served: {reason}", "model")
    return config


def _object(path: Path) -> dict[str, Any]:
    """A JSON object in a file. Raises UserError: there is none."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}; pull or copy it again", "model") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no JSON object: pull or copy it again", "model")
    return found


def take_quantisation(config: Any) -> Quantisation | None:
    """Take what a configuration says of quantised weights out of it: they are read here, not by transformers.

    Raises:
        Unsupported: the engine does not have what it asks for.
    """
    quantisation = read_quantisation(getattr(config, "quantization_config", None))
    if quantisation is not None:
        del config.quantization_config
    return quantisation


def _refusal(config: Any) -> str | None:
    """Why this configuration cannot be served; None if it can."""
    if config.is_encoder_decoder:
        return "it is an encoder-decoder; plait serves decoders only"
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return "transformers has no causal language model for it"
    kinds = set(getattr(config, "layer_types", None) or ()) | set(
        getattr(config, "layers_block_type", None) or ()
    )
    if kinds - LAYER_TYPES:
        return f"it has {', '.join(sorted(kinds - LAYER_TYPES))} layers; plait serves plain attention only"
    for rope in _ropes(getattr(config, "rope_parameters", None) or {}):
        if rope.get("rope_type", "default") not in ROPE_TYPES:
            return f"its rotary embedding of type {rope['rope_type']} depends on the whole batch's length"
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if isinstance(model_class, tuple):
        return "transformers has several causal language models for it"
    if not model_class._supports_attention_backend:
        return "its attention cannot be replaced through transformers' AttentionInterface"
    return None


def _ropes(parameters: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The rope settings: of the model, or of each kind of layer."""
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    yield from nested or [parameters]


def load_module(
    folder: Path, config: Any, dtype: torch.dtype, seed: int | None, quantisation: Quantisation | None = None
) -> tuple[nn.Module, dict[str, QuantisedWeight]]:
    """The model with our attention, in evaluation mode, without gradients; and its quantised layers by name.

    Quantised layers have the weights that their numbers stand for.

    Args:
        seed: None loads the weights (safetensors, sharded or not); a number draws them at random.
        quantisation: what `take_quantisation` gave.

    Raises:
        UserError: weights are missing, or of other sizes than the configuration says.
    """
    quantised: dict[str, QuantisedWeight] = {}
    if seed is not None and quantisation is not None:
        raise UserError(
            "random weights (seed) are not quantised: load the weights, or leave seed out", "seed"
        )
    if seed is not None:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            module = AutoModelForCausalLM.from_config(config, attn_implementation=NAME, dtype=dtype)
    else:
        files_of(folder)
        state = None
        if quantisation is not None:
            state, quantised = read_weights(folder, quantisation, dtype)
        widths = widths_of(config)
        if widths is None:
            module = _pretrained(folder, config, dtype, state)
        else:
            module = load_uneven(config, widths, state or all_weights(folder), NAME, dtype)
        if quantisation is not None:
            check_layers(module, quantisation, quantised)
    if any(name.rsplit(".", 1)[-1] in ("sinks", "sink") for name, _ in module.named_parameters()):
        raise Unsupported(f"{folder.name} has attention sinks, which plait does not support", "model")
    return module.eval().requires_grad_(False), quantised


def _pretrained(
    folder: Path, config: Any, dtype: torch.dtype, state: dict[str, torch.Tensor] | None
) -> nn.Module:
    """The module that transformers loads, from `state` where it is given."""
    with quietly():
        module, report = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
            None if state else folder,
            config=config,
            state_dict=state,
            attn_implementation=NAME,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told in the report
        )
    missing = sorted(report["missing_keys"])
    if missing or report["mismatched_keys"]:
        what = missing or sorted(str(key) for key in report["mismatched_keys"])
        raise UserError(f"{folder} lacks weights that config.json names: {', '.join(what[:5])}", "model")
    return module


@contextmanager
def quietly() -> Iterator[None]:
    """Without transformers' progress bar on our streams."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def end_ids(folder: Path, config: Any) -> tuple[int, ...]:
    """The model's own end tokens: of generation_config.json, else of config.json. Raises UserError."""
    path = folder / "generation_config.json"
    ids = _object(path).get("eos_token_id") if path.is_file() else None
    ids = config.eos_token_id if ids is None else ids
    return tuple(sorted(ids)) if isinstance(ids, list) else () if ids is None else (ids,)
