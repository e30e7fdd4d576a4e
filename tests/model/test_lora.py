"""Adapters beside products give the logits of merged weights, and leave all other tokens as they were."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from plait.kernels.choice import choose
from plait.model import check
from plait.model.config import ModelConfig
from plait.model.fuse import Gate
from plait.model.inputs import Adapted
from plait.model.lora_folder import CONFIG, WEIGHTS
from plait.model.model import Model
from plait.model.quantised import round_weight
from plait.spec.errors import NotFound, PlaitError, Unsupported, UserError
from plait.spec.schemes import Scheme
from tests.adapters import ALL, adapter, merged, write_adapter
from tests.model import test_decode_tape
from tests.tiny import VOCAB, tiny_folder

PAGE = 16
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
INT8 = Scheme(8, None, packed=True, targets=("Linear",))
TOKENS_T = (torch.arange(24) * 37 + 5) % VOCAB


def opened(folder: Path, **settings: object) -> Model:
    return Model(ModelConfig(str(folder), slots=1024, page=PAGE, **settings))


def logits(model: Model, *numbers: int) -> list[Tensor]:
    """Of one prompt with each of these adapters, all in one step."""
    whole = [(copy, 0, len(TOKENS_T)) for copy in range(len(numbers))]
    counts_R = np.full(len(numbers), len(TOKENS_T))
    adapted = Adapted.of_rows(np.array(numbers), counts_R)
    return list(model.forward(check.cut(TOKENS_T, whole, PAGE), adapted).split(len(TOKENS_T)))


def by_transformers(module: torch.nn.Module) -> Tensor:
    with torch.inference_mode():
        return module(TOKENS_T[None]).logits[0].float()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def folders(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("adapters")
    some = ("q_proj", "down_proj")
    return [
        write_adapter(base, root / "all"),
        write_adapter(base, root / "some", 2, 7, some),
        write_adapter(base, root / "gate", 3, 1, ("gate_proj",), use_rslora=True, lora_alpha=2),
    ]


def test_tokens_of_a_mixed_step_are_those_of_rows_alone_in_exact_mode(base, folders):
    model = opened(base, exact=True)
    before = logits(model, 0)[0]
    for number, folder in enumerate(folders, 1):
        model.adapters.load(adapter(folder, number))
    mixed = logits(model, 2, 0, 1, 3, 1, 0)
    for number, found in zip((2, 0, 1, 3, 1, 0), mixed, strict=True):
        assert torch.equal(found, logits(model, number)[0])
    assert torch.equal(mixed[1], before)
    assert not torch.allclose(mixed[0], before, atol=0.1)
    pieces = check.cut(TOKENS_T, [(0, 0, 9), (1, 0, 5)], PAGE)
    model.forward(pieces, Adapted.of_rows(np.array([1, 2]), np.array([9, 5])))
    rest = check.cut(TOKENS_T, [(1, 5, 24), (0, 9, 24)], PAGE)
    found = model.forward(rest, Adapted.of_rows(np.array([2, 1]), np.array([19, 15])))
    assert torch.equal(found, torch.cat([mixed[0][5:], mixed[2][9:]]))


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "gpt2", "opt", "gpt_neox", "gemma2"])
def test_logits_are_those_of_merged_weights(tmp_path, family):
    targets = (
        *ALL,
        "qkv_proj",
        "gate_up_proj",
        "c_attn",
        "c_proj",
        "c_fc",
        "fc1",
        "fc2",
        "out_proj",
        "dense",
    )
    folder = tiny_folder(tmp_path, family)
    model, written = (
        opened(folder, dtype="float32"),
        write_adapter(folder, tmp_path / "adapter", 5, 3, targets),
    )
    model.adapters.load(adapter(written, 9))
    plain, found = logits(model, 0, 9)
    check.compare(found, by_transformers(merged(folder, written)), torch.float32)
    assert float((found - plain).abs().max()) > 0.1


@pytest.mark.skipif(choose().native is None, reason="fused gates are native")
def test_bf16_with_fused_gates_is_near_merged_weights_and_leaves_other_rows_alone(base, folders):
    model = opened(base, dtype="bfloat16")
    before = logits(model, 0, 0)[0]
    for number, folder in enumerate(folders, 1):
        model.adapters.load(adapter(folder, number))
    found = logits(model, 1, 0, 2, 3)
    assert torch.equal(found[1], before)
    for number, scale in ((1, 2.0), (2, 2.0), (3, 2.0)):
        theirs = by_transformers(merged(base, folders[number - 1], scale))
        check.compare(found[(0, 2, 3)[number - 1]], theirs, torch.bfloat16, 2)


@pytest.mark.skipif(choose().native is None, reason="fused gates are native")
def test_a_gate_whose_halves_are_one_layer(tmp_path):
    folder = tiny_folder(tmp_path, "phi3")
    written = write_adapter(folder, tmp_path / "adapter", 5, 3, ("gate_up_proj",))
    model = opened(folder, dtype="bfloat16")
    assert any(isinstance(part.__dict__.get("forward"), Gate) for part in model.module.modules())
    before = logits(model, 0, 0)[0]
    model.adapters.load(adapter(written, 1))
    found = logits(model, 1, 0)
    check.compare(found[0], by_transformers(merged(folder, written)), torch.bfloat16, 2)
    assert torch.equal(found[1], before)


@pytest.mark.skipif(choose().native is None, reason="rounded weights are native")
def test_rounded_weights_keep_their_factors_in_float(base, folders):
    model = opened(base, weights="int8", dtype="bfloat16")
    for number, folder in enumerate(folders, 1):
        model.adapters.load(adapter(folder, number))
    rounded = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        for name, part in rounded.named_modules():
            if type(part) is nn.Linear and name != "lm_head":
                part.weight.copy_(round_weight(part.weight, INT8).dense(torch.float32))
    rounded.save_pretrained(folders[0].parent / "rounded")
    for number, found in zip((0, 1, 2, 3), logits(model, 0, 1, 2, 3), strict=True):
        theirs = merged(folders[0].parent / "rounded", folders[number - 1]) if number else rounded
        check.compare(found, by_transformers(theirs), torch.bfloat16, 2)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_an_adapter_of_peft_itself(base, tmp_path):
    peft = pytest.importorskip("peft")

    module = AutoModelForCausalLM.from_pretrained(base)
    settings = peft.LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", use_rslora=True)
    trained = peft.get_peft_model(module, settings)
    with torch.no_grad():
        for name, weight in trained.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.1)
    trained.save_pretrained(tmp_path / "adapter")
    model = opened(base)
    model.adapters.load(adapter(tmp_path / "adapter", 1))
    check.compare(logits(model, 1)[0], by_transformers(trained), torch.float32)


def test_when_the_last_one_goes_every_layer_has_its_own_forward_again(base, folders):
    model = opened(base, dtype="bfloat16")
    before = {name: part.forward for name, part in model.module.named_modules()}
    plain = logits(model, 0)[0]
    model.adapters.load(adapter(folders[0], 1))
    model.adapters.load(adapter(folders[1], 2))
    one = logits(model, 1)[0]
    model.adapters.drop(2)
    assert torch.equal(logits(model, 1)[0], one)
    assert 1 in model.adapters
    assert 2 not in model.adapters
    model.adapters.drop(1)
    assert {name: part.forward for name, part in model.module.named_modules()} == before
    assert torch.equal(logits(model, 0)[0], plain)


@pytest.mark.skipif(choose().native is None, reason="tapes are native")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_steps_without_adapters_are_played_as_before(base, folders, dtype):
    model = Model(ModelConfig(str(base), dtype=dtype, slots=1024, page=test_decode_tape.PAGE))
    one, two = (test_decode_tape.step(random.Random(3), rows) for rows in (4, 7))
    test_decode_tape.filled(model, 1)
    before = model.forward(one).clone()
    model.adapters.load(adapter(folders[0], 1))
    test_decode_tape.filled(model, 1)
    assert torch.equal(model.forward(one), before)
    test_decode_tape.filled(model, 1)
    wanted = model._compute(two).clone()
    test_decode_tape.filled(model, 1)
    check.compare(model.forward(two), wanted, DTYPES[dtype])  # recorded under hooks
    assert list(model._tapes._tapes) == [4, 8]
    test_decode_tape.filled(model, 1)
    mixed = model.forward(one, Adapted.of_rows(np.array([0, 1, 0, 1]), np.ones(4, np.int64)))
    check.compare(mixed[::2], before[::2], DTYPES[dtype])
    assert float((mixed[1::2] - before[1::2]).abs().min(1).values.max()) > 0
    model.adapters.drop(1)
    test_decode_tape.filled(model, 1)
    assert torch.equal(model.forward(one), before)


BAD_SETTINGS = {
    "use_dora": (True, "DoRA"),
    "modules_to_save": (["lm_head"], "modules_to_save"),
    "bias": ("all", "bias"),
    "peft_type": ("LOHA", "LORA"),
    "task_type": ("SEQ_CLS", "CAUSAL_LM"),
    "r": (500, "over 256"),
    "lora_alpha": (0, "over 0"),
    "init_lora_weights": ("pissa", "base model's weights"),
    "rank_pattern": ({"q_proj": 2}, "rank_pattern"),
    "alora_invocation_tokens": ([1], "alora_invocation_tokens"),
    "what_comes_next": (1, "what_comes_next"),
}


@pytest.mark.parametrize("key", BAD_SETTINGS)
def test_settings_that_we_do_not_honour_are_refused(base, tmp_path, key):
    value, words = BAD_SETTINGS[key]
    folder = write_adapter(base, tmp_path / "adapter", **{key: value})
    with pytest.raises(UserError, match=words):
        opened(base).adapters.load(adapter(folder, 1))


def change(folder: Path, name: str, tensor: Tensor | None) -> None:
    """Put a tensor into a file, or take it out."""
    tensors = load_file(folder / WEIGHTS)
    if tensor is None:
        del tensors[name]
    else:
        tensors[name] = tensor
    save_file(tensors, folder / WEIGHTS)


LAYER = "base_model.model.model.layers.1.self_attn.q_proj"
BAD_TENSORS = {
    f"{LAYER}.lora_A.weight": [
        (torch.full((4, 64), torch.nan), "finite"),
        (torch.ones(4, 32), "another model"),
    ],
    f"{LAYER}.lora_B.weight": [(None, "both factors"), (torch.ones(64, 5), "another model")],
    f"{LAYER}.lora_magnitude_vector": [(torch.ones(64), "no factor")],
    "base_model.model.lm_head.weight": [(torch.ones(VOCAB, 64), "no factor")],
}


@pytest.mark.parametrize(
    ("name", "tensor", "words"), [(name, *bad) for name, each in BAD_TENSORS.items() for bad in each]
)
def test_tensors_that_do_not_belong_are_refused(base, tmp_path, name, tensor, words):
    folder = write_adapter(base, tmp_path / "adapter")
    change(folder, name, tensor)
    model = opened(base)
    with pytest.raises(UserError, match=words):
        model.adapters.load(adapter(folder, 1))
    assert 1 not in model.adapters


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ("lm_head", "output heads"),
        ("model.layers.9.self_attn.q_proj", "no layer"),
        ("model.norm", "output heads"),
    ],
)
def test_layers_that_cannot_have_one_are_named(base, tmp_path, layer, words):
    folder = write_adapter(base, tmp_path / "adapter")
    for half, shape in (("A", (4, 64)), ("B", (64, 4))):
        change(folder, f"base_model.model.{layer}.lora_{half}.weight", torch.ones(shape))
    with pytest.raises(UserError, match=words):
        opened(base).adapters.load(adapter(folder, 1))


def test_folders_that_are_none(base, tmp_path):
    model, folder = opened(base), write_adapter(base, tmp_path / "adapter")
    meant = adapter(folder, 1)
    (folder / CONFIG).write_text(json.dumps({**json.loads((folder / CONFIG).read_text()), "lora_alpha": 9}))
    with pytest.raises(UserError, match="changed"):
        model.adapters.load(meant)
    (folder / CONFIG).write_text("[]")
    with pytest.raises(UserError, match="no JSON object"):
        model.adapters.load(adapter(folder, 1))
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(NotFound, match="pickles"):
        adapter(folder, 1)
    with pytest.raises(PlaitError, match=r"adapter_config\.json is not there"):
        adapter(tmp_path, 1)


def test_experts_are_refused(tmp_path):
    folder = tiny_folder(tmp_path, "qwen3_moe")
    written = write_adapter(folder, tmp_path / "adapter", 1, 4, ("q_proj",))
    model = opened(folder)
    model.adapters.load(adapter(written, 1))
    name = "base_model.model.model.layers.0.mlp.experts.0.up_proj"
    for half, shape in (("A", (4, 64)), ("B", (32, 4))):
        change(written, f"{name}.lora_{half}.weight", torch.ones(shape))
    with pytest.raises((Unsupported, UserError), match="experts"):
        model.adapters.load(adapter(written, 2))
