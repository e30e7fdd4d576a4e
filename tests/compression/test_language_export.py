"""Exported decoders are what was measured: in transformers, in this engine, and in others where they are."""

import copy
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf.quants import dequantize
from safetensors.torch import load_file
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoModelForCausalLM

from plait.compression.export import write_folder
from plait.compression.export_gguf import FORMS, blocks, write_gguf
from plait.compression.gptq import Rounding, nearest
from plait.compression.language import DecoderConfig, Storage, storage_of
from plait.compression.language_cost import memory_bytes, weight_bytes
from plait.compression.targets import TARGETS
from plait.compression.tasks.language import Reader
from plait.model import check
from plait.model.config import ModelConfig
from plait.model.gguf import convert
from plait.model.model import Model
from plait.model.pack import QuantisedProduct
from plait.runtime.engine import shape_of
from plait.spec.errors import Unsupported, UserError
from plait.spec.policy import CompressionPolicy
from tests.compression.tiny_language import tiny_language

IDS_T = torch.arange(40) * 37 % 256
PEERS = Path(__file__).parents[2] / "peers"
CUTS = {"depths": (0.25, 0.0), "widths": (0.5, 0.25, 0.0), "heads": (0.5, 0.0)}


def measured(reader: Reader, policy: CompressionPolicy) -> torch.Tensor:
    """Logits of what a label was measured of."""
    with torch.inference_mode():
        return reader.carver.build(policy)(IDS_T[None]).logits[0]


def transformers_logits(folder: Path, dtype: torch.dtype) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    with torch.inference_mode():
        return model(IDS_T[None]).logits[0].float()


def both_logits(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """By transformers in float32 and in bf16."""
    return transformers_logits(folder, torch.float32), transformers_logits(folder, torch.bfloat16)


def engine(folder: Path) -> Model:
    return Model(ModelConfig(str(folder), dtype="bfloat16", slots=256, page=16))


def engine_logits(folder: Path) -> torch.Tensor:
    return engine(folder).forward(check.cut(IDS_T, [(0, 0, len(IDS_T))], 16))


def gap(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_folder_of_mixed_bits_is_what_was_measured(family, seed, tmp_path):
    pytest.importorskip("compressed_tensors", reason="the oracle of the format is not installed")
    choice = DecoderConfig(bits=(2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 16.0), **CUTS)
    reader = tiny_language(tmp_path, choice, target="transformers", family=family).open()
    space = reader.task.space
    index_D = space.sample(np.random.default_rng(seed), 1)[0]
    policy = space.decode(index_D)
    size = write_folder(reader.carver, policy, reader.task.folder, tmp_path / "small")
    cost = weight_bytes(space, reader.decoder, Storage(64), reader.carver.order)
    assert size == pytest.approx(cost(space.z_of(index_D)[None])[0][0], rel=0.03, abs=12_000)
    ours_TV = measured(reader, policy)
    exact_TV, rounded_TV = (
        transformers_logits(tmp_path / "small", d) for d in (torch.float32, torch.bfloat16)
    )
    # The folder's own bf16 parts are all that differs.
    assert gap(exact_TV, ours_TV) < 0.02
    assert gap(engine_logits(tmp_path / "small"), exact_TV) <= 1.25 * gap(rounded_TV, exact_TV)
    told = CompressionPolicy.parse((tmp_path / "small" / "policy.json").read_text())
    assert told == policy
    with pytest.raises(UserError, match="not empty"):
        write_folder(reader.carver, policy, reader.task.folder, tmp_path / "small")


def test_bits_below_8_run_on_packed_kernels(tmp_path):
    reader = tiny_language(tmp_path, DecoderConfig(bits=(3.0, 6.0)), target="plait").open()
    index_D = np.arange(len(reader.task.space)) % 2
    write_folder(reader.carver, reader.task.space.decode(index_D), reader.task.folder, tmp_path / "small")
    products = [
        part.forward for part in engine(tmp_path / "small").module.modules() if "forward" in vars(part)
    ]
    assert sum(isinstance(product, QuantisedProduct) for product in products) == 4 * 2
    joined = {
        p.group.product for p in products if hasattr(p, "group") and not isinstance(p, QuantisedProduct)
    }
    assert len(joined) == 4 * 2


def test_a_pruned_folder_is_smaller_and_dense(tmp_path):
    choice = DecoderConfig(bits=(16.0,), **CUTS)
    reader = tiny_language(tmp_path, choice, target="transformers").open()
    space = reader.task.space
    policy = space.decode(np.zeros(len(space), dtype=np.int64))
    size = write_folder(reader.carver, policy, reader.task.folder, tmp_path / "small")
    cost = weight_bytes(space, reader.decoder, Storage(64), reader.carver.order)
    assert size == pytest.approx(cost(np.zeros((1, len(space))))[0][0], rel=0.03)
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    assert "quantization_config" not in config
    sizes = ("num_hidden_layers", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    assert [config[name] for name in sizes] == [3, 128, 2, 1]
    exact_TV, rounded_TV = (
        transformers_logits(tmp_path / "small", d) for d in (torch.float32, torch.bfloat16)
    )
    assert gap(exact_TV, measured(reader, policy)) < 0.02
    assert gap(engine_logits(tmp_path / "small"), exact_TV) <= 1.25 * gap(rounded_TV, exact_TV)


@pytest.mark.parametrize("bits", [(16.0,), (3.0, 6.0)])
def test_layers_of_different_widths_run_in_plait_alone(bits, tmp_path):
    choice = DecoderConfig(bits=bits, widths=(0.5, 0.25, 0.0))
    reader = tiny_language(tmp_path, choice, target="plait").open()
    space = reader.task.space
    index_D = np.array([n % 3 if gene.knob == "prune" else n % 2 for n, gene in enumerate(space.genes)])
    policy = space.decode(index_D)
    size = write_folder(reader.carver, policy, reader.task.folder, tmp_path / "small")
    cost = weight_bytes(space, reader.decoder, Storage(64), reader.carver.order)
    assert size == pytest.approx(cost(space.z_of(index_D)[None])[0][0], rel=0.03, abs=12_000)
    model = engine(tmp_path / "small")
    widths = [layer.ffn for layer in model.shape.layers]
    assert len(set(widths)) > 1
    assert [part.mlp.gate_proj.out_features for part in model.module.model.layers] == widths
    exact_TV = measured(reader, policy)
    with torch.inference_mode():
        rounded_TV = copy.deepcopy(reader.carver.module).bfloat16()(IDS_T[None]).logits[0].float()
    assert gap(engine_logits(tmp_path / "small"), exact_TV) <= 1.25 * gap(rounded_TV, exact_TV)
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    config["plait_layers"].pop()
    (tmp_path / "small" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="needs an intermediate_size for each of 4 layers"):
        engine(tmp_path / "small")


@pytest.mark.parametrize("bits", [4, 5, 8])
def test_blocks_are_ggufs(bits):
    torch.manual_seed(bits)
    weight = nearest(Rounding(torch.randn(6, 96), Storage(32, 8.0).scheme(bits)), torch.eye(96))
    read = dequantize(blocks(weight), FORMS[bits])
    assert np.array_equal(read, weight.dense(torch.float32).numpy())


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    """A GGUF file of mixed bits, heads and a block cut away, and its logits as they were measured."""
    root = tmp_path_factory.mktemp("gguf")
    choice = DecoderConfig(bits=(4.0, 5.0, 8.0), group=32, **CUTS)
    reader = tiny_language(root, choice, target="gguf", bos_token_id=256).open()
    folder = reader.task.folder
    with pytest.raises(Unsupported, match="SmolLM's tokenizer only"):
        write_gguf(reader.carver, CompressionPolicy(()), folder, root / "none.gguf")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    told = json.loads(tokenizer.to_str())
    # A file needs a merge: a token that nobody uses becomes that of two letters.
    told["model"]["vocab"]["ap"] = told["model"]["vocab"].pop("<|27|>")
    told["model"]["merges"] = [["a", "p"]]
    told["added_tokens"] = [token for token in told["added_tokens"] if token["content"] != "<|27|>"]
    (folder / "tokenizer.json").write_text(json.dumps(told))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"bos_token": "<|end|>", "unk_token": "<|end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    index_D = reader.task.space.sample(np.random.default_rng(3), 1)[0]
    index_D[[g.knob == "prune" for g in reader.task.space.genes]] = 0
    policy = reader.task.space.decode(index_D)
    size = write_gguf(reader.carver, policy, folder, root / "small.gguf")
    cost = weight_bytes(
        reader.task.space,
        reader.decoder,
        storage_of(choice, TARGETS["gguf"]),
        reader.carver.order,
    )
    assert size == pytest.approx(cost(reader.task.space.z_of(index_D)[None])[0][0], rel=0.03, abs=16_000)
    return root / "small.gguf", measured(reader, policy)


def test_a_gguf_file_is_what_was_measured(gguf, tmp_path):
    path, ours_TV = gguf
    (tmp_path / "back").mkdir()
    convert(path, tmp_path / "back")
    assert gap(transformers_logits(tmp_path / "back", torch.float32), ours_TV) < 0.02


LLAMA = """
import sys, llama_cpp, numpy as np
model = llama_cpp.Llama(sys.argv[1], n_ctx=64, logits_all=True, verbose=False)
model.eval([int(part) for part in sys.argv[3].split(",")])
np.save(sys.argv[2], model.scores[: len(sys.argv[3].split(","))])
"""


def test_llama_cpp_reads_the_gguf_file(gguf, tmp_path):
    python = PEERS / "llama-cpp-python" / "bin" / "python"
    if not python.exists():
        pytest.skip("llama-cpp-python is not installed in an environment of its own: run `make peers`")
    path, ours_TV = gguf
    ids = ",".join(map(str, IDS_T.tolist()))
    command = [str(python), "-c", LLAMA, str(path), str(tmp_path / "logits.npy"), ids]
    subprocess.run(command, check=True, timeout=120, capture_output=True)
    theirs_TV = torch.from_numpy(np.load(tmp_path / "logits.npy"))[:, : ours_TV.shape[1]]
    # llama.cpp rounds activations to 8 bits.
    assert gap(theirs_TV, ours_TV) < 0.05


def test_a_folder_is_counted_as_it_is_kept(tmp_path):
    """Widths, bits, scales, and keys of 8 bits: the planner's figures are the file's."""
    choice = DecoderConfig(bits=(4.0, 8.0, 16.0), widths=(0.5, 0.25, 0.0), kv_bits=(8.0,))
    reader = tiny_language(tmp_path, choice, target="plait").open()
    space = reader.task.space
    policy = space.decode(space.sample(np.random.default_rng(0), 1)[0])
    write_folder(reader.carver, policy, reader.task.folder, tmp_path / "small")
    tensors = load_file(tmp_path / "small" / "model.safetensors")
    counted = [x for n, x in tensors.items() if x.ndim > 1]
    shape = shape_of(tmp_path / "small")
    assert shape.weight_bytes == sum(x.numel() * x.element_size() for x in counted)
    cost = memory_bytes(space, reader.decoder, storage_of(choice, TARGETS["plait"]), reader.carver.order)
    told = float(cost(space.z_of(space.encode(policy))[None])[0][0])
    assert told == pytest.approx(shape.weight_bytes, abs=4 * 1024)
    assert shape.kv_bits == 8 + 32 / shape.layers[0].head_dim
    assert len({layer.ffn for layer in shape.layers}) > 1
