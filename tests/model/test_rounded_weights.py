"""Weights that are rounded as they are loaded are those that `plait quantize` writes."""

import pytest
import torch

from plait.compression.quantize import QuantizeConfig, quantize
from plait.model import check
from plait.model.config import ModelConfig, Rank
from plait.model.model import Model
from plait.model.pack import QuantisedProduct
from plait.spec.errors import Unsupported, UserError
from tests.tiny import tiny_folder

IDS_T = torch.arange(40) * 37 % 256
SIZES = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}


def logits(config: ModelConfig) -> torch.Tensor:
    return Model(config).forward(check.cut(IDS_T, [(0, 0, len(IDS_T))], 16)).clone()


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_rounding_at_load_is_quantising_the_folder(family, tmp_path):
    folder = tiny_folder(tmp_path, family, **SIZES)
    quantize(folder, tmp_path / "small", QuantizeConfig("int8"))
    told = {"dtype": "bfloat16", "slots": 256, "page": 16}
    there = logits(ModelConfig(str(tmp_path / "small"), **told))
    assert torch.equal(logits(ModelConfig(str(folder), weights="int8", **told)), there)
    assert not torch.equal(logits(ModelConfig(str(folder), **told)), there)


def test_layers_are_computed_with_as_whole_numbers_and_the_head_is_not(tmp_path):
    folder = tiny_folder(tmp_path, "llama", **SIZES)
    model = Model(ModelConfig(str(folder), dtype="bfloat16", weights="int8", slots=256, page=16))
    parts = dict(model.module.named_modules())
    products = {n: p.forward for n, p in parts.items() if "forward" in vars(p)}
    assert isinstance(products["model.layers.0.mlp.down_proj"], QuantisedProduct)
    assert not isinstance(products["lm_head"], QuantisedProduct)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"weights": "int3"}, "choose one of auto, int8"),
        ({"dtype": "float32"}, "take bf16"),
        ({"rank": Rank(tp=2)}, "use tp 1"),
        ({"seed": 0}, "leave weights and seed out"),
    ],
)
def test_what_cannot_be_rounded_is_refused(changes, says, tmp_path):
    folder = tiny_folder(tmp_path, "llama", **SIZES)
    told = {"dtype": "bfloat16", "weights": "int8", "slots": 256, "page": 16} | changes
    with pytest.raises((UserError, Unsupported), match=says):
        Model(ModelConfig(str(folder), **told))
