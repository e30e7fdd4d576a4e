"""Shares of a model: what each process has, and what is refused in words."""

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from plait.model import settle, shard, stage
from plait.model.config import ModelConfig, Rank
from plait.model.share import share_of
from plait.spec.errors import Unsupported
from plait.spec.schemes import Quantisation, Scheme
from plait.spec.shape import ModelShape
from tests.tiny import COMMON, tiny_config, tiny_folder

SIZES = {"num_attention_heads": 8, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 5}
GROUPED = {"num_key_value_heads": 2, "head_dim": 16}


def whole(family: str = "llama", **changes) -> tuple[torch.nn.Module, ModelShape]:
    config = tiny_config(family, **{**SIZES, **GROUPED, **changes})
    return AutoModelForCausalLM.from_config(config), ModelShape.from_config(config.to_dict())


def test_layers_and_heads_of_all_ranks_cover_the_model():
    for pp in range(1, 6):
        layers = [i for stage_ in range(pp) for i in Rank(1, pp, stage_).layers(5)]
        assert layers == list(range(5))
        sizes = [len(Rank(1, pp, stage_).layers(5)) for stage_ in range(pp)]
        assert max(sizes) - min(sizes) <= 1
    assert [list(Rank(2, 1, i).share(4)) for i in range(2)] == [[0, 1], [2, 3]]
    assert [list(Rank(4, 1, i).share(2)) for i in range(4)] == [[0], [0], [1], [1]]


@pytest.mark.parametrize("tp", [2, 4, 8])
def test_weights_of_all_columns_are_those_of_the_model(tp):
    weights, shape = whole()
    state = weights.state_dict()
    cuts = [shard.cut(whole()[0], shape.layers[0], Rank(tp, 1, i)) for i in range(tp)]
    for name in cuts[0]:
        parts = [each[name] for each in cuts]
        joined = torch.cat([part.of(state[name]) for part in parts], parts[0].dim)
        kept = "k_proj" in name or "v_proj" in name
        copies = max(1, tp // 2) if kept else 1
        blocks = state[name].chunk(tp // copies, parts[0].dim)
        assert torch.equal(joined, torch.cat([b for b in blocks for _ in range(copies)], parts[0].dim))


@pytest.mark.parametrize(
    ("rank", "why"),
    [
        (Rank(3, 1), "tp can be 1, 2, 4, 8"),
        (Rank(16, 1), "tp can be"),
        (Rank(1, 6), "5 layers make no 6 stages"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(rank, why):
    with pytest.raises(Unsupported, match=why):
        share_of(whole()[1], rank)


def test_widths_that_do_not_divide_are_refused():
    module, shape = whole(intermediate_size=250)
    with pytest.raises(Unsupported, match=r"mlp\.gate_proj has 250 values"):
        shard.cut(module, shape.layers[0], Rank(4, 1))


def test_models_without_a_plan_are_refused():
    module, shape = whole("opt", ffn_dim=256, word_embed_proj_dim=128)
    with pytest.raises(Unsupported, match="no tensor-parallel plan for opt"):
        shard.cut(module, shape.layers[0], Rank(2, 1))
    with pytest.raises(Unsupported, match="no pipeline plan for opt"):
        stage.stack_of(module)


REFUSED = {
    "Phi3Config": "rowwise_split_input",
    "Olmo2Config": "colwise_gather_output",
    "Glm4Config": "colwise_gather_output",
    "Qwen3MoeConfig": "moe_tp_experts",
}


@pytest.mark.parametrize("name", REFUSED)
def test_plans_that_we_do_not_carry_out_are_refused_by_name(name):
    sizes = {**COMMON, **SIZES, **GROUPED, "num_hidden_layers": 1}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    config = getattr(transformers, name)(**sizes, **(experts if "Moe" in name else {}))
    module = AutoModelForCausalLM.from_config(config)
    with pytest.raises(Unsupported, match=f"plan wants '{REFUSED[name]}' of model.*: use tp 1"):
        shard.cut(module, ModelShape.from_config(config.to_dict()).layers[0], Rank(2, 1))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1}, r"random weights \(seed\) are for tp 1 and pp 1"),
        ({"device": "cuda"}, "several processes compute on cpu only: use tp 1 and pp 1"),
    ],
)
def test_what_only_one_process_can_do_is_refused(changes, words):
    with pytest.raises(Unsupported, match=words):
        settle.validate(ModelConfig("", rank=Rank(2, 1), **changes))


def test_quantised_weights_are_not_divided(tmp_path):
    eight = Quantisation((Scheme(8, None, True, ("Linear",)),), ())
    folder = tiny_folder(tmp_path)
    with pytest.raises(Unsupported, match="quantised weights are not divided: use tp 1 and pp 1"):
        settle.dtype(ModelConfig(str(folder), rank=Rank(1, 2)), eight)
