"""`plait quantize` writes folders that this engine and the format's own library read alike."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from plait.cli.main import app
from plait.compression.quantize import QuantizeConfig, quantize
from plait.model import check
from plait.model.config import ModelConfig
from plait.model.model import Model
from plait.model.pack import QuantisedProduct
from plait.model.quantised import round_weight
from plait.spec.errors import UserError
from plait.spec.schemes import Scheme
from tests.tiny import VOCAB, tiny_folder

SIZES = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([(8, None), (4, 32), (4, 64)]), st.floats(-6, 4))
def test_every_weight_is_within_half_a_scale(seed, form, size):
    torch.manual_seed(seed)
    bits, group = form
    weight_NI = torch.randn(7, 128) * 10**size
    weight_NI[3] = 0
    rounded = round_weight(weight_NI, Scheme(bits, group, True, ("Linear",)))
    scales_NI = rounded.scales_NG.float().repeat_interleave(group or 128, 1)
    # The scale is rounded to bf16, which moves the largest weight beyond the last whole number.
    slack = 1 + 2**-7 * 2 ** (bits - 1)
    assert ((rounded.dense(torch.float32) - weight_NI).abs() <= scales_NI * 0.5 * slack + 1e-30).all()
    assert not rounded.codes_NI[3].any()


def theirs(folder: Path, tokens_T: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Logits by transformers and the library, whose weights are dequantised to `dtype`."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    with torch.inference_mode():
        return model(tokens_T[None]).logits[0].float()


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_the_library_reads_what_was_written(weights, tied, head, tmp_path):
    pytest.importorskip("compressed_tensors", reason="the oracle of the format is not installed")
    source = tiny_folder(tmp_path, "qwen2", tie_word_embeddings=tied, **SIZES)
    done = quantize(source, tmp_path / "small", QuantizeConfig(weights, 32, head))
    assert done.layers == 14 + head
    assert done.bytes_after < done.bytes_before
    tokens_T = (torch.arange(40) * 37 + 11) % VOCAB
    model = Model(ModelConfig(str(tmp_path / "small"), slots=64, page=16))
    assert isinstance(model.module.lm_head.forward, QuantisedProduct) == head
    ours_TV = model.forward(check.cut(tokens_T, [(0, 0, 40)], 16))
    exact_TV, rounded_TV = (theirs(tmp_path / "small", tokens_T, d) for d in (torch.float32, torch.bfloat16))
    gap, allowed = (float((x - exact_TV).norm() / exact_TV.norm()) for x in (ours_TV, rounded_TV))
    assert gap <= 1.25 * allowed


def test_eight_bits_change_little(tiny_llama, tmp_path):
    quantize(tiny_llama, tmp_path / "small", QuantizeConfig("int8", head=True))
    tokens_T = (torch.arange(40) * 37 + 11) % VOCAB
    step = check.cut(tokens_T, [(0, 0, 40)], 16)
    before_TV, after_TV = (
        Model(ModelConfig(str(folder), slots=64, page=16)).forward(step)
        for folder in (tiny_llama, tmp_path / "small")
    )
    assert (before_TV.argmax(-1) == after_TV.argmax(-1)).float().mean() >= 0.8


def test_several_files_keep_their_names(tmp_path):
    source = tiny_folder(tmp_path, "llama", **SIZES)
    AutoModelForCausalLM.from_pretrained(source).save_pretrained(tmp_path / "split", max_shard_size="300KB")
    quantize(tmp_path / "split", tmp_path / "small", QuantizeConfig("int8"))
    index = json.loads((tmp_path / "small" / "model.safetensors.index.json").read_text())["weight_map"]
    names = sorted(path.name for path in (tmp_path / "split").glob("*.safetensors"))
    assert len(names) > 1
    assert sorted(set(index.values())) == names
    Model(ModelConfig(str(tmp_path / "small"), slots=64))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (QuantizeConfig("int3"), "int8, int4"),
        (QuantizeConfig("int4", 48), "32, 64, 128"),
        (QuantizeConfig("int4", 64), "do not divide the 96 inputs.*choose 32"),
    ],
)
def test_options_that_do_not_fit_are_refused(config, words, tiny_llama, tmp_path):
    with pytest.raises(UserError, match=words):
        quantize(tiny_llama, tmp_path / "small", config)
    assert not (tmp_path / "small").exists()


def test_nothing_is_overwritten_or_quantised_twice(tiny_llama, tmp_path):
    small = tmp_path / "small"
    quantize(tiny_llama, small, QuantizeConfig("int8"))
    with pytest.raises(UserError, match="not empty"):
        quantize(tiny_llama, small, QuantizeConfig("int8"))
    with pytest.raises(UserError, match="quantised already"):
        quantize(small, tmp_path / "smaller", QuantizeConfig("int4", 32))


def test_the_verb(tiny_llama, tmp_path):
    from typer.testing import CliRunner

    target: Path = tmp_path / "small"
    result = CliRunner().invoke(app, ["quantize", str(tiny_llama), str(target), "--lm-head"])
    assert result.exit_code == 0, result.output
    assert str(target) in result.stdout
    Model(ModelConfig(str(target), slots=64))
