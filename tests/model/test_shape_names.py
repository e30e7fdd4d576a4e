"""Names and sizes that `ModelShape` takes the layers of a family to have are those of transformers."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from plait.spec.shape import BLOCKS, LLAMA, NAMES, ModelShape
from tests.tiny import tiny_config

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "opt", "gpt_neox", "phi3")


@pytest.mark.parametrize("family", FAMILIES)
def test_projections_have_these_names_and_sizes(family):
    config = tiny_config(family)
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config)
    shape = ModelShape.from_config(config.to_dict())
    found: dict[str, int] = {}
    prefix = BLOCKS.get(config.model_type, "model.layers")
    for number, layer in enumerate(shape.layers):
        names = NAMES.get(config.model_type, LLAMA)
        for name, (outputs, inputs) in zip(names, layer.projections, strict=True):
            full = f"{prefix}.{number}.{name}"
            found[full] = found.get(full, 0) + outputs * inputs
    real = {
        name: part.weight.numel()
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear) and name.startswith(prefix)
    }
    assert found == real
