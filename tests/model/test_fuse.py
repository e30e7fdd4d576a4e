"""Fused modules give what the unfused give; what is not understood stays as it is."""

import logging

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from plait.model import fuse
from tests.tiny import FAMILIES, tiny_config


def model(family: str, **changes) -> nn.Module:
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(
        tiny_config(family, **changes), attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "norm" in name:
                weight.normal_()
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fused_model_gives_the_same_logits(family):
    made, tokens = model(family), torch.arange(20)[None]
    with torch.inference_mode():
        want = made(tokens, use_cache=False).logits
        fuse.install(made, torch.float32, 1)
        got = made(tokens, use_cache=False).logits
    torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("family", ["llama", "qwen3", "opt"])
def test_training_runs_the_modules_own_forward_and_it_comes_back(family):
    made, tokens = model(family), torch.arange(20)[None]
    fused = fuse.install(made, torch.float32, 1)
    assert bool(fused) == (family != "opt")
    made(tokens, use_cache=False).logits.sum().backward()
    assert all(weight.grad is not None for name, weight in made.named_parameters() if "norm" in name)
    fuse.remove(made)
    assert not any("forward" in part.__dict__ for part in made.modules())


def test_a_module_that_only_looks_like_a_norm_keeps_its_forward(caplog):
    class OddRMSNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.eps = nn.Parameter(torch.ones(16)), 1e-6

        def forward(self, x):
            return x * self.weight

    odd = nn.Sequential(OddRMSNorm())
    with caplog.at_level(logging.WARNING):
        assert fuse.install(odd, torch.float32, 1) == 0
    assert "left as it is" in caplog.text
    assert "forward" not in odd[0].__dict__


def test_another_activation_is_not_fused():
    made = model("llama", hidden_act="gelu")
    fuse.install(made, torch.float32, 1)
    assert "forward" not in made.model.layers[0].mlp.__dict__
