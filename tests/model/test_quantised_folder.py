"""Folders written by the compressed-tensors library give the logits of their dequantised weights."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from plait.kernels.choice import choose
from plait.model import check
from plait.model.config import ModelConfig
from plait.model.model import Model
from plait.model.pack import QuantisedProduct, Siblings
from plait.model.quantised import pack_words, unpack_words
from plait.spec.errors import PlaitError, Unsupported, UserError
from plait.spec.schemes import read_quantisation
from tests.model.test_decode_tape import PAGE, filled, step
from tests.tiny import VOCAB, tiny_folder

compressed = pytest.importorskip("compressed_tensors", reason="the oracle of the format is not installed")
from compressed_tensors.compressors import ModelCompressor  # noqa: E402
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32  # noqa: E402
from compressed_tensors.quantization import (  # noqa: E402
    QuantizationConfig,
    QuantizationStatus,
    apply_quantization_config,
)
from compressed_tensors.quantization.utils import calculate_qparams  # noqa: E402

SIZES = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
FORMS = {
    "int8": (8, None, "pack-quantized"),
    "int8-plain": (8, None, "int-quantized"),
    "int4": (4, None, "pack-quantized"),
    "int4-32": (4, 32, "pack-quantized"),
    "int4-64": (4, 64, "pack-quantized"),
    "int4-128": (4, 128, "pack-quantized"),
    "int2-32": (2, 32, "pack-quantized"),
    "int3-64": (3, 64, "pack-quantized"),
    "int5": (5, None, "pack-quantized"),
    "int7": (7, None, "pack-quantized"),
}


def weight_args(bits: int, group: int | None) -> dict:
    """The weights of a scheme."""
    strategy = "group" if group else "channel"
    return {"num_bits": bits, "type": "int", "symmetric": True, "strategy": strategy, "group_size": group}


def write(source: Path, target: Path, groups: dict, ignore: list[str], form: str) -> None:
    """Quantise a folder's model by the library, to nearest, and write it."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    config = QuantizationConfig(config_groups=groups, ignore=ignore, format=form)
    apply_quantization_config(model, config)
    for module in model.modules():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is None:
            continue
        grouped = module.weight.float().unflatten(1, (-1, scheme.weights.group_size or module.in_features))
        scales, zeros = calculate_qparams(grouped.amin(-1), grouped.amax(-1), scheme.weights)
        module.weight_scale.data.copy_(scales)
        if hasattr(module, "weight_zero_point"):
            module.weight_zero_point.data.copy_(zeros)
        module.quantization_status = QuantizationStatus.FROZEN
    compressor = ModelCompressor.from_pretrained_model(model, form)
    compressor.compress_model(model)
    model.save_pretrained(target)
    compressor.update_config(target)


def tokens() -> torch.Tensor:
    return (torch.arange(40) * 37 + 11) % VOCAB


def theirs(folder: Path, dtype: torch.dtype) -> torch.Tensor:
    """Logits by transformers and the library, whose weights are dequantised to `dtype`."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    with torch.inference_mode():
        return model(tokens()[None]).logits[0].float()


def ours(model: Model) -> torch.Tensor:
    return model.forward(check.cut(tokens(), [(0, 0, len(tokens()))], model.config.page))


def same_logits(folder: Path) -> Model:
    """Our logits are as near to those of float32 as transformers' in bf16."""
    model = Model(ModelConfig(str(folder), slots=256, page=16, threads=2))
    exact, rounded = theirs(folder, torch.float32), theirs(folder, torch.bfloat16)
    gap = float((ours(model) - exact).norm() / exact.norm())
    allowed = float((rounded - exact).norm() / exact.norm())
    assert gap <= 1.25 * allowed
    return model


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_logits_are_those_of_the_dequantised_model(family, form, tmp_path):
    bits, group, kept = FORMS[form]
    groups = {"group_0": {"targets": ["Linear"], "weights": weight_args(bits, group)}}
    source = tiny_folder(tmp_path, family, **SIZES)
    write(source, tmp_path / "small", groups, ["lm_head"], kept)
    model = same_logits(tmp_path / "small")
    products = [part.forward for part in model.module.modules() if "forward" in part.__dict__]
    assert sum(isinstance(product, QuantisedProduct) for product in products) == 2 * 2


def test_each_group_of_layers_has_its_own_form(tmp_path):
    """4-bit feed-forward layers, 8-bit attention, one layer left out: siblings of two forms stay apart."""
    groups = {
        "a": {"targets": ["re:.*mlp.*"], "weights": weight_args(4, 32)},
        "b": {"targets": ["re:.*self_attn.*"], "weights": weight_args(8, None)},
    }
    source = tiny_folder(tmp_path, "llama", **SIZES)
    write(source, tmp_path / "small", groups, ["model.layers.0.self_attn.k_proj"], "pack-quantized")
    model = same_logits(tmp_path / "small")
    first, second = model.module.model.layers
    assert isinstance(first.self_attn.q_proj.forward, QuantisedProduct)
    assert not isinstance(first.self_attn.k_proj.forward, QuantisedProduct)
    group = second.self_attn.k_proj.forward.group
    assert isinstance(group, Siblings)
    assert isinstance(group.product, QuantisedProduct)


def test_a_quantised_head_of_its_own(tmp_path):
    source = tiny_folder(tmp_path, "llama", tie_word_embeddings=False, **SIZES)
    groups = {"group_0": {"targets": ["Linear"], "weights": weight_args(8, None)}}
    write(source, tmp_path / "small", groups, [], "pack-quantized")
    assert isinstance(same_logits(tmp_path / "small").module.lm_head.forward, QuantisedProduct)


@pytest.mark.skipif(choose().native is None, reason="native kernels are not built")
@pytest.mark.parametrize("form", ["int8", "int4-64"])
def test_a_tape_gives_the_models_logits(form, tmp_path):
    bits, group, kept = FORMS[form]
    groups = {"group_0": {"targets": ["Linear"], "weights": weight_args(bits, group)}}
    write(tiny_folder(tmp_path, "qwen2", **SIZES), tmp_path / "small", groups, ["lm_head"], kept)
    model = Model(ModelConfig(str(tmp_path / "small"), slots=1024, page=PAGE))
    for rows in (1, 5, 7):
        inputs = step(random.Random(rows), rows)
        filled(model, rows)
        theirs_BV = model._compute(inputs).clone()
        filled(model, rows)
        ours_BV = model._tapes.play(inputs)
        assert ours_BV is not None, "no tape was recorded"
        assert (ours_BV - theirs_BV).abs().max() <= 6e-2 * theirs_BV.abs().max()


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("inputs", [1, 7, 8, 33, 128])
def test_words_are_the_librarys(bits, inputs):
    half = 2 ** (bits - 1)
    codes = torch.randint(-half, half, (5, inputs), dtype=torch.int8)
    words = pack_words(codes, bits)
    assert torch.equal(unpack_from_int32(words, bits, codes.shape), codes)
    assert torch.equal(unpack_words(pack_to_int32(codes, bits), bits, inputs), codes)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("quantised")
    groups = {"group_0": {"targets": ["Linear"], "weights": weight_args(4, 32)}}
    write(tiny_folder(root, **SIZES), root / "small", groups, ["lm_head"], "pack-quantized")
    return root / "small"


def described(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())["quantization_config"]


WEIGHTS = ("config_groups", "group_0", "weights")
REFUSALS = [
    (("quant_method",), "gptq"),
    (("quantization_status",), "frozen"),
    (("format",), "marlin-24"),
    (("kv_cache_scheme",), {"num_bits": 8}),
    (("sparsity_config",), {"format": "sparse-24"}),
    (("transform_config",), {"config_groups": {}}),
    (("something_new",), 1),
    (("config_groups", "group_0", "input_activations"), {"num_bits": 8}),
    (("config_groups", "group_0", "output_activations"), {"num_bits": 8}),
    (("config_groups", "group_0", "targets"), ["Embedding"]),
    ((*WEIGHTS, "num_bits"), 9),
    ((*WEIGHTS, "type"), "float"),
    ((*WEIGHTS, "symmetric"), False),
    ((*WEIGHTS, "strategy"), "tensor"),
    ((*WEIGHTS, "group_size"), 16),
    ((*WEIGHTS, "actorder"), "group"),
    ((*WEIGHTS, "dynamic"), True),
    ((*WEIGHTS, "block_structure"), [128, 128]),
    ((*WEIGHTS, "something_new"), 1),
]


@pytest.mark.parametrize(("path", "value"), REFUSALS)
def test_what_the_kernels_do_not_have_is_refused_by_name(small, path, value):
    config = described(small)
    assert read_quantisation(config)
    place = config
    for name in path[:-1]:
        place = place[name]
    if path[-1] == "format":
        config["config_groups"]["group_0"].pop("format", None)
    place[path[-1]] = value
    with pytest.raises(Unsupported, match=f"{path[-1]}.*plait quantize"):
        read_quantisation(config)


def test_groups_of_eight_bits_are_refused(small):
    config = described(small)
    config["config_groups"]["group_0"]["weights"]["num_bits"] = 8
    with pytest.raises(Unsupported, match=r"weights\.strategy is 'group'.*one scale an output"):
        read_quantisation(config)


def changed(small: Path, target: Path, change) -> ModelConfig:
    """A copy of the folder whose tensors and configuration went through `change`."""
    shutil.copytree(small, target)
    tensors, config = load_file(small / "model.safetensors"), json.loads((small / "config.json").read_text())
    change(tensors, config)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_text(json.dumps(config))
    return ModelConfig(str(target), slots=64)


LAYER = "model.layers.1.mlp.up_proj"
CHANGES = [
    (lambda t, c: t.update({f"{LAYER}.weight_zero_point": torch.zeros(1)}), "weight_zero_point"),
    (lambda t, c: t.update({f"{LAYER}.weight_g_idx": torch.zeros(1)}), "weight_g_idx"),
    (lambda t, c: t.pop(f"{LAYER}.weight_scale"), f"{LAYER}.weight_packed without"),
    (lambda t, c: t.pop(f"{LAYER}.weight_packed"), f"lacks {LAYER}.weight_packed"),
    (lambda t, c: t.update({f"{LAYER}.weight_scale": torch.ones(3, 4)}), "do not fit"),
    (lambda t, c: c["quantization_config"]["ignore"].append(LAYER), "mend config.json"),
    (lambda t, c: c["quantization_config"]["ignore"].remove("lm_head"), "name it in `ignore`"),
]


@pytest.mark.parametrize(("change", "words"), CHANGES)
def test_a_folder_that_contradicts_itself_is_refused(small, change, words, tmp_path):
    config = changed(small, tmp_path / "changed", change)
    with pytest.raises(PlaitError, match=words):
        Model(config)


def test_options_that_quantised_weights_cannot_honour_are_refused(small):
    with pytest.raises(UserError, match="dtype is float32"):
        Model(ModelConfig(str(small), slots=64, dtype="float32"))
    with pytest.raises(UserError, match="not quantised"):
        Model(ModelConfig(str(small), slots=64, seed=1))
    with pytest.raises(Unsupported, match="exact"):
        Model(ModelConfig(str(small), slots=64, exact=True))
