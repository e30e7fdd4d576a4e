"""Queries and keys that are turned as keys are stored give what transformers' own rotation gives."""

import logging

import pytest
import torch
from transformers.models.cohere import modeling_cohere
from transformers.models.llama import modeling_llama

from plait.kernels.choice import choose
from plait.model import check, rope
from plait.model.config import ModelConfig
from plait.model.model import Model
from tests.tiny import FAMILIES, tiny_folder

ROTARY = ("llama", "mistral", "qwen2", "qwen3", "gpt_neox", "gemma2", "phi3", "qwen3_moe")


def logits(model, tokens_T):
    return model.forward(check.cut(tokens_T, [(0, 0, len(tokens_T))], 1)).clone()


@pytest.mark.parametrize("family", FAMILIES)
def test_deferred_rotation_gives_the_same_logits(family, tmp_path):
    model = Model(ModelConfig(str(tiny_folder(tmp_path, family)), dtype="float32", slots=64))
    layers = [part for part in model.module.modules() if "attend" in part.__dict__]
    assert all(("forward" in layer.__dict__) == (family in ROTARY) for layer in layers)
    tokens_T = torch.arange(30)
    turned_TV = logits(model, tokens_T)
    rope.undefer(model.module)
    assert not any("forward" in layer.__dict__ for layer in layers)
    torch.testing.assert_close(turned_TV, logits(model, tokens_T), rtol=1e-4, atol=1e-4)


def test_pairs_of_neighbours_are_left_to_the_model():
    assert rope._turns_halves(modeling_llama.apply_rotary_pos_emb)
    assert not rope._turns_halves(modeling_cohere.apply_rotary_pos_emb)
    assert not rope._turns_halves(None)


def test_outside_of_a_step_the_models_own_rotation_runs(tmp_path):
    model = Model(ModelConfig(str(tiny_folder(tmp_path)), dtype="float32", slots=64))
    tokens_T = torch.arange(30)
    want_TV = logits(model, tokens_T)
    with torch.inference_mode():
        torch.testing.assert_close(check.reference(model.module, tokens_T), want_TV, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(choose().native is None, reason="native kernels are not built")
def test_a_layer_that_works_on_what_it_turned_keeps_its_rotation(tmp_path, monkeypatch, caplog):
    """The rotation itself is the usual one; only the logits show that it may not wait."""
    attention = modeling_llama.ALL_ATTENTION_FUNCTIONS["plait"]

    def clipping(module, query, key, value, *args, **kwargs):
        return attention(module, query.clamp(-0.5, 0.5), key.clamp(-0.5, 0.5), value, *args, **kwargs)

    def own_forward(folder):
        with caplog.at_level(logging.WARNING):
            return Model(ModelConfig(str(folder), dtype="float32", slots=64))

    monkeypatch.setitem(modeling_llama.ALL_ATTENTION_FUNCTIONS, "plait", clipping)
    monkeypatch.setattr(check, "compare", lambda *args: None)  # it is another model than transformers' now
    model = own_forward(tiny_folder(tmp_path))
    assert "rotation stays as it is" in caplog.text
    assert not any("forward" in p.__dict__ for p in model.module.modules() if "attend" in p.__dict__)
