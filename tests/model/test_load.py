"""What is loaded, what is refused and in which words, and that parts are what they replace."""

import json
import logging
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from plait.model import attend, check, pack, rope
from plait.model.load import load_config
from plait.model.model import Model, ModelConfig
from plait.spec.errors import NotFound, Unsupported, UserError
from tests.tiny import VOCAB, tiny_folder


def write(folder: Path, **config) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "t5"}, "encoder-decoder"),
        ({"model_type": "mamba"}, "cannot be"),
        ({"model_type": "vit"}, "no causal language model"),
        ({"model_type": "jamba"}, "mamba"),
        ({"model_type": "nowhere", "auto_map": {"AutoConfig": "x.Y"}}, "never runs"),
        ({"model_type": "nowhere"}, "does not know"),
        ({"model_type": "qwen3_next"}, "linear_attention"),
        (
            {
                "model_type": "llama",
                "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
            },
            "rotary",
        ),
    ],
)
def test_what_the_seam_cannot_carry_is_refused_in_words(tmp_path, config, words):
    with pytest.raises(Unsupported, match=words):
        load_config(write(tmp_path / "m", **config))


def test_sinks_are_refused(tmp_path):
    """gpt-oss adds a learned score to each softmax."""
    sizes = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 32, "num_local_experts": 2}
    sizes |= {"head_dim": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64}
    folder = write(tmp_path / "m", model_type="gpt_oss", **sizes)
    with pytest.raises(Unsupported, match=r"sinks|rotary"):
        Model(ModelConfig(str(folder), seed=0, slots=64))


def test_odd_heads_are_refused(tmp_path):
    with pytest.raises(Unsupported, match="size 12"):
        Model(ModelConfig(str(tiny_folder(tmp_path, head_dim=12))))


def test_keys_that_do_not_fit_the_pool_are_refused(tmp_path):
    """Multi-head latent attention has keys and values of different sizes."""
    sizes = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 32, "vocab_size": 64}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16}
    sizes |= {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "first_k_dense_replace": 1}
    folder = write(tmp_path / "m", model_type="deepseek_v3", **sizes)
    with pytest.raises(Unsupported, match="cannot be served"):
        Model(ModelConfig(str(folder), seed=0, slots=64))


def test_missing_files_and_weights_are_named(tmp_path):
    with pytest.raises(NotFound, match=r"config\.json"):
        Model(ModelConfig(str(tmp_path)))
    folder = tiny_folder(tmp_path)
    (folder / "model.safetensors").rename(tmp_path / "away.safetensors")
    with pytest.raises(UserError, match="safetensors"):
        Model(ModelConfig(str(folder)))
    from safetensors.torch import load_file, save_file

    weights = load_file(tmp_path / "away.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="up_proj"):
        Model(ModelConfig(str(folder)))


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"dtype": "int3"}, "dtype"),
        ({"device": "cuda"}, "device"),
        ({"slots": 10, "page": 16}, "slots"),
        ({"threads": 0}, "threads"),
        ({"max_len": 10**6}, "max_len"),
        ({"exact": True, "dtype": "bfloat16"}, "exact"),
    ],
)
def test_options_are_honoured_or_refused(tmp_path, options, param):
    with pytest.raises(UserError) as refused:
        Model(ModelConfig(str(tiny_folder(tmp_path)), **options))
    assert refused.value.param == param


def test_experts_have_no_exact_mode(tmp_path):
    with pytest.raises(Unsupported, match="experts"):
        Model(ModelConfig(str(tiny_folder(tmp_path, "qwen3_moe")), exact=True))


def test_a_model_says_what_it_is(tmp_path):
    model = Model(ModelConfig(str(tiny_folder(tmp_path)), slots=64, max_len=100))
    assert (model.vocab, model.max_len, model.eos_ids, model.pool.slots) == (VOCAB, 100, (256,), 64)
    assert model.shape.max_tokens == 100
    assert model.shape.kv_bytes_per_token == 2 * 2 * 2 * 16 * 4


def test_random_weights_are_a_function_of_the_seed(tmp_path):
    folder = write(tmp_path / "m", **tiny_config_dict(tmp_path))
    models = [Model(ModelConfig(str(folder), slots=64, seed=seed)) for seed in (1, 1, 2)]
    first, same, other = (next(iter(m.module.state_dict().values())) for m in models)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def tiny_config_dict(root: Path) -> dict:
    return json.loads((tiny_folder(root, "qwen3") / "config.json").read_text())


def test_sharded_weights_are_loaded(tmp_path):
    folder = tiny_folder(tmp_path)
    whole = Model(ModelConfig(str(folder), slots=64)).module.state_dict()
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    parts = Model(ModelConfig(str(folder), slots=64)).module.state_dict()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_bfloat16_is_served(tmp_path):
    model = Model(ModelConfig(str(tiny_folder(tmp_path)), slots=64, dtype="bfloat16"))
    assert model.pool.layers[0].dtype == torch.bfloat16


def test_a_model_that_computes_something_else_is_refused():
    ours = torch.randn(3, 8)
    check.compare(ours, ours + 1e-6, torch.float32)
    for wrong in (ours + 0.1, torch.full_like(ours, torch.nan)):
        with pytest.raises(Unsupported, match="self-check failed"):
            check.compare(wrong, ours, torch.float32)


def module(tmp_path: Path, family: str = "llama") -> torch.nn.Module:
    folder = tiny_folder(tmp_path, family)
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").eval()


@pytest.mark.parametrize("packed", [True, False])
def test_packing_keeps_the_forward_and_the_parameters(tmp_path, packed):
    for family, products in (
        ("llama", 4 * 2 + 1),
        ("qwen2", 4 * 2 + 1),
        ("opt", 4 * 2 + 1),
        ("gpt2", 4 * 2 + 1),
    ):
        model = module(tmp_path, family)
        names, ids = list(model.state_dict()), torch.arange(20)[None]
        with torch.inference_mode():
            before = model(ids, use_cache=False).logits
            assert pack.install(model, packed, 1) == products
            torch.testing.assert_close(model(ids, use_cache=False).logits, before, rtol=1e-4, atol=1e-4)
            assert list(model.state_dict()) == names
            pack.remove(model)
            torch.testing.assert_close(model(ids, use_cache=False).logits, before, rtol=1e-4, atol=1e-4)


def test_siblings_compute_again_for_another_input(tmp_path):
    model = module(tmp_path)
    layer = model.model.layers[0].self_attn
    x, y = torch.randn(1, 3, 64), torch.randn(1, 3, 64)
    want = layer.k_proj(y)
    pack.install(model, True, 1)
    layer.q_proj(x)
    torch.testing.assert_close(layer.k_proj(y), want, rtol=1e-4, atol=1e-4)
    group = layer.q_proj.forward.group
    layer.q_proj(y)
    layer.v_proj(y)
    assert group.input is None, "activations are let go once every sibling has its share"
    assert group.shares == ()


def test_rotary_tables_hold_what_the_module_computes(tmp_path):
    for family in ("llama", "gpt_neox"):
        model = module(tmp_path, family)
        rotary = next(m for m in model.modules() if "RotaryEmbedding" in type(m).__name__)
        at = torch.tensor([[5, 0, 499, 5]])
        want = rotary(torch.empty(1), at)
        assert rope.install(model, 512, torch.float32)
        assert isinstance(rotary.forward, rope.Table)
        for ours, theirs in zip(rotary(torch.empty(1), at), want, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_attention_refuses_what_it_does_not_do(tmp_path):
    q = torch.zeros(1, 4, 2, 16)
    for meant in ({"s_aux": torch.zeros(4)}, {"is_causal": False}, {"position_bias": torch.zeros(1)}):
        with pytest.raises(Unsupported, match=next(iter(meant))):
            attend.attention(torch.nn.Module(), q, q, q, None, **meant)


def test_every_layer_gets_exactly_one_attention(tmp_path):
    model = Model(ModelConfig(str(tiny_folder(tmp_path)), slots=64))
    hung = [m for m in model.module.modules() if "attend" in m.__dict__]
    assert len(hung) == 2
    with pytest.raises(Unsupported, match="layers"):
        attend.hang(model.module.model.layers[0], model.pool, model._current, 1)


def test_a_table_is_not_used_where_it_would_be_wrong(tmp_path, caplog):
    class OddRotaryEmbedding(torch.nn.Module):
        def forward(self, x, position_ids):
            value = position_ids.float()[..., None] / position_ids.max()
            return value, value

    with caplog.at_level(logging.WARNING):
        assert not rope.install(torch.nn.Sequential(OddRotaryEmbedding()), 40, torch.float32)
    assert "computed anew" in caplog.text


def test_config_is_that_of_transformers(tmp_path):
    folder = tiny_folder(tmp_path, "qwen3")
    assert load_config(folder).to_dict() == AutoConfig.from_pretrained(folder).to_dict()
