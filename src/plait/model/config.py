"""`ModelConfig`: what a worker is told to load. No torch here: drivers make it, workers use it."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from plait.kernels.choice import choose
from plait.spec.shape import KV_FIELD


@dataclass(frozen=True, slots=True)
class Rank:
    """One process of an instance of tp x pp: ranks of the first stage come first.

    A stage (pipeline parallel) has an interval of layers, a column (tensor parallel) a share of each layer.
    """

    tp: int = 1
    """Processes that share each layer."""
    pp: int = 1
    """Stages that follow each other."""
    index: int = 0
    """0 to tp x pp - 1."""

    @property
    def size(self) -> int:
        """Processes of the instance."""
        return self.tp * self.pp

    @property
    def stage(self) -> int:
        """Which interval of layers it has."""
        return self.index // self.tp

    @property
    def column(self) -> int:
        """Which share of its layers it has."""
        return self.index % self.tp

    @property
    def last(self) -> bool:
        """Its stage has the output head and draws tokens."""
        return self.stage == self.pp - 1

    @property
    def answers(self) -> bool:
        """It speaks for the instance: the first of those that draw, whose draws are the same."""
        return self.index == self.size - self.tp

    def of_stage(self, stage: int) -> int:
        """Index of the process with the same share of another stage."""
        return stage * self.tp + self.column

    def layers(self, count: int) -> range:
        """Its layers of `count`; stages get equal numbers, some one more where it does not divide."""
        return range(-(-self.stage * count // self.pp), -(-(self.stage + 1) * count // self.pp))

    def share(self, units: int) -> range:
        """Its units of a layer's `units`; where there are more processes, neighbours have the same one."""
        first = self.column * units // self.tp
        return range(first, first + max(1, units // self.tp))


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What to load and how to serve it."""

    folder: str
    """Folder of config.json, tokenizer and safetensors."""
    dtype: str = "auto"
    """Type of weights and activations: float32, bfloat16, or auto; see `dtype_of`."""
    weights: str = "auto"
    """Of linear layers: auto, as the folder has them; int8: rounded to 8 bits, a scale an output, when they
    are loaded. The output head stays as it is."""
    kv_dtype: str = "auto"
    """Type of keys and values in the pool: float32, bfloat16, int8 with one float32 scale for each head of a
    token, or auto: what the model was compressed for (see `kv_dtype_of`), else that of activations."""
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
    rank: Rank = field(default_factory=Rank)
    """Which part of the model to load."""


def kv_dtype_of(folder: Path, wanted: str) -> str:
    """What `wanted` means for a model: `auto` is what it was compressed for, if that says anything."""
    if wanted != "auto":
        return wanted
    found: str = json.loads((folder / "config.json").read_text()).get(KV_FIELD, wanted)
    return found


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
