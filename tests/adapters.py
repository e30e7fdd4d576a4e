"""Adapters of tiny models as peft writes them, and the models that they make when they are merged."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from plait.model.lora_folder import CONFIG, WEIGHTS, digest_of, files_of
from plait.spec.adapter import Adapter

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def write_adapter(
    base: Path, folder: Path, seed: int = 1, rank: int = 4, targets: tuple[str, ...] = ALL, **settings: object
) -> Path:
    """Write an adapter that changes much, with random factors.

    Args:
        targets: last parts of the names of the layers that have factors.
        settings: of adapter_config.json, in the place of the usual ones.
    """
    module = AutoModelForCausalLM.from_pretrained(base)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, part in module.named_modules():
        if name.rpartition(".")[2] in targets:
            outputs, inputs = sizes(part)
            for half, shape in (("lora_A", (rank, inputs)), ("lora_B", (outputs, rank))):
                drawn = torch.randn(shape, generator=generator) * 0.2
                tensors[f"base_model.model.{name}.{half}.weight"] = drawn
    folder.mkdir(parents=True)
    save_file(tensors, folder / WEIGHTS)
    usual = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": list(targets)}
    (folder / CONFIG).write_text(json.dumps({**usual, "bias": "none", **settings}))
    return folder


def sizes(part: nn.Module) -> tuple[int, int]:
    """Outputs and inputs of a linear layer."""
    shape = tuple(part.weight.shape)
    return (shape[1], shape[0]) if isinstance(part, Conv1D) else (shape[0], shape[1])


def adapter(folder: Path, number: int) -> Adapter:
    """As a driver names it to its workers."""
    return Adapter(number, str(folder), digest_of(*files_of(folder)))


def merged(base: Path, folder: Path, scale: float = 2.0) -> nn.Module:
    """The slow reference: transformers' model with `scale * B A` added to each weight."""
    module = AutoModelForCausalLM.from_pretrained(base)
    tensors = load_file(folder / WEIGHTS)
    with torch.no_grad():
        for name, part in module.named_modules():
            stem = f"base_model.model.{name}.lora_"
            if f"{stem}A.weight" in tensors:
                delta_NI: Tensor = scale * tensors[f"{stem}B.weight"] @ tensors[f"{stem}A.weight"]
                part.weight += delta_NI.T if isinstance(part, Conv1D) else delta_NI
    return module.eval()


def merged_folder(base: Path, folder: Path, root: Path, scale: float = 2.0) -> Path:
    """The same as a model folder."""
    module = merged(base, folder, scale)
    root.mkdir()
    for path in base.iterdir():
        (root / path.name).write_bytes(path.read_bytes())
    module.save_pretrained(root)
    return root
