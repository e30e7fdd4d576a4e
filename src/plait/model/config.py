"""`ModelConfig`: what a worker is told to load. No torch here: drivers make it, workers use it."""

import json
from dataclasses import dataclass
from pathlib import Path

from plait.kernels.choice import choose


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What to load and how to serve it."""

    folder: str
    """Folder of config.json, tokenizer and safetensors."""
    dtype: str = "auto"
    """Type of weights and activations: float32, bfloat16, or auto; see `dtype_of`."""
    kv_dtype: str = "auto"
    """Type of keys and values in the pool: auto (that of activations), float32, bfloat16, or int8 with one
    float32 scale for each head of a token."""
    slots: int = 8192
    """Token slots of the KV pool, a multiple of `page`."""
    page: int = 1
    """Neighbouring slots that hold neighbouring positions of a request."""
    exact: bool = False
    """Promise that results do not depend on batch, chunking or threads; refused where they would."""
    max_len: int | None = None
    """Longest request in tokens, prompt and output together; None: the model's own limit."""
    seed: int | None = None
    """Draw random weights from this seed and load none; None: load the weights."""
    device: str = "cpu"
    """Where to compute: cpu, cuda (the first GPU that this process sees) or cuda:N."""
    threads: int = 1
    """Threads that our kernels use."""


def dtype_of(folder: Path, wanted: str, exact: bool, device: str = "cpu") -> str:
    """What `wanted` means for a model: `auto` is bfloat16 where the weights are and the CPU computes with it,
    else float32, as in exact mode. GPUs and products with quantised weights take bfloat16."""
    if wanted != "auto":
        return wanted
    if device != "cpu":
        return "bfloat16"
    raw = json.loads((folder / "config.json").read_text())
    if "quantization_config" in raw:
        return "bfloat16"
    own = raw.get("dtype") or raw.get("torch_dtype")
    return "bfloat16" if own == "bfloat16" and not exact and choose().isa == "AVX-512-bf16" else "float32"
