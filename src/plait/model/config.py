"""`ModelConfig`: what a worker is told to load. No torch here: drivers make it, workers use it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What to load and how to serve it."""

    folder: str
    """Folder of config.json, tokenizer and safetensors."""
    dtype: str = "auto"
    """Type of weights and KV: float32, bfloat16, or auto (float32 on a CPU, bfloat16 on a GPU)."""
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
