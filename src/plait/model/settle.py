"""What a configuration means for a model; what cannot be is refused."""

from pathlib import Path
from typing import Any

import torch

from plait.model.config import ModelConfig, dtype_of, kv_dtype_of
from plait.spec.errors import Unsupported, UserError
from plait.spec.schemes import Quantisation, Scheme
from plait.spec.shape import ModelShape

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def validate(config: ModelConfig) -> None:
    """Refuse what no model could be loaded with.

    Raises:
        UserError, Unsupported: name the option.
    """
    if config.dtype not in ("auto", *DTYPES):
        raise UserError(f"dtype is {config.dtype}; choose one of auto, {', '.join(DTYPES)}", "dtype")
    if config.weights not in ("auto", "int8"):
        raise UserError(f"weights is {config.weights}; choose one of auto, int8", "weights")
    if config.exact and config.device != "cpu":
        raise Unsupported(
            "exact mode is for cpu only: a GPU's products sum in an order of their own", "exact"
        )
    if config.page < 1 or config.slots < config.page or config.slots % config.page:
        raise UserError(
            f"slots ({config.slots}) must be a positive multiple of page ({config.page})", "slots"
        )
    if config.threads < 1:
        raise UserError("threads must be at least 1", "threads")
    if config.rank.size > 1 and config.seed is not None:
        raise Unsupported("random weights (seed) are for tp 1 and pp 1: load the weights", "seed")
    if config.rank.size > 1 and config.device != "cpu":
        raise Unsupported("instances of several processes compute on cpu only: use tp 1 and pp 1", "device")


def rounding(config: ModelConfig, quantisation: Quantisation | None) -> Quantisation | None:
    """What is rounded as it is loaded; None: nothing.

    Raises:
        Unsupported: the folder is quantised already, or its weights are not loaded.
    """
    if config.weights == "auto":
        return None
    if quantisation is not None or config.seed is not None:
        raise Unsupported(
            "weights are int8, which rounds floats as they are loaded: name a folder of floats, or leave "
            "weights and seed out",
            "weights",
        )
    return Quantisation((Scheme(8, None, True, ("Linear",)),), ("lm_head",))


def dtype(config: ModelConfig, quantisation: Quantisation | None) -> torch.dtype:
    """The type of activations: products with quantised weights take bf16."""
    wanted = dtype_of(Path(config.folder), config.dtype, config.exact, config.device)
    if quantisation is None:
        return DTYPES[wanted]
    if config.rank.size > 1:
        raise Unsupported("quantised weights are not divided: use tp 1 and pp 1", "tp")
    if config.device != "cpu":
        raise Unsupported("quantised weights are computed with on cpu only", "device")
    if wanted != "bfloat16":
        raise UserError(
            f"dtype is {wanted}, but the model's weights are quantised and take bf16: leave dtype out",
            "dtype",
        )
    return torch.bfloat16


def kv_dtype(config: ModelConfig, activations: torch.dtype) -> torch.dtype:
    """The type of the pool: that of activations, or int8."""
    wanted = kv_dtype_of(Path(config.folder), config.kv_dtype)
    if wanted == "int8":
        if config.device != "cpu":
            raise Unsupported(
                "keys and values of int8 are kept on cpu only: set kv_dtype to bfloat16", "kv_dtype"
            )
        return torch.int8
    if wanted not in ("auto", *DTYPES):
        raise UserError(f"kv_dtype is {wanted}; choose one of auto, {', '.join(DTYPES)}, int8", "kv_dtype")
    if wanted != "auto" and DTYPES[wanted] != activations:
        raise UserError(
            f"kv_dtype is {wanted}, but activations are {str(activations).removeprefix('torch.')}: choose "
            "auto or int8, or change dtype",
            "kv_dtype",
        )
    return activations


def shape(config: dict[str, Any], bits: float) -> ModelShape:
    """Sizes of a model that our attention can carry."""
    try:
        found = ModelShape.from_config(config, bits=bits, kv_bits=bits)
    except ValueError as error:
        raise Unsupported(f"this model's sizes are not understood: {error}", "model") from error
    for layer in found.layers:
        if layer.head_dim not in range(8, 257, 8):
            reason = f"its heads have size {layer.head_dim}; plait's attention takes multiples of 8 up to 256"
            raise Unsupported(f"this model cannot be served: {reason}", "model")
    return found


def max_len(wanted: int | None, limit: int) -> int:
    """Longest request in tokens."""
    if wanted is not None and not 1 <= wanted <= limit:
        raise UserError(f"max_len {wanted} is not in 1..{limit}, the model's own limit", "max_len")
    return wanted or limit
