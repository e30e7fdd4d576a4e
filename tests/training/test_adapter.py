"""Adapters: nothing changes until they are trained, they merge to what they compute, and they can be off."""

from contextlib import nullcontext

import pytest
import torch

from plait.spec.errors import UserError
from plait.training import adapter
from plait.training.adapter import LoraConfig, Unadapted, adapt, adapters, is_adapter, merged
from plait.training.batch import Padded, Sample
from plait.training.cut import Head, Part, load
from plait.training.late import LateWeights

pytest.importorskip("peft", reason="adapters are peft's")
CONFIG = LoraConfig(rank=4, alpha=8.0)


def batch() -> Padded:
    return Padded.of([Sample(0, 0, (5, 6, 7), (8, 9), True), Sample(1, 1, (5, 6), (7, 8, 9), False)])


@pytest.fixture
def part(tiny_llama) -> Part:
    """A whole model with an adapter, drawn so that it does something."""
    module = load(tiny_llama, Head.WORDS, 0)
    adapt(module, CONFIG, 1)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            weight.requires_grad_(is_adapter(name))
            if is_adapter(name):
                weight.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    return Part(module, Head.WORDS, [len(module.base_model.layers)], 0)


def plain(tiny_llama) -> Part:
    module = load(tiny_llama, Head.WORDS, 0)
    return Part(module, Head.WORDS, [len(module.base_model.layers)], 0)


def test_a_fresh_adapter_changes_nothing_and_follows_from_its_seed(tiny_llama):
    made = []
    for seed in (3, 3, 4):
        module = load(tiny_llama, Head.WORDS, 0)
        adapt(module, CONFIG, seed)
        made.append(adapters(module))
        bare = plain(tiny_llama)
        whole = Part(module, Head.WORDS, [len(module.base_model.layers)], 0)
        assert torch.equal(whole(None, batch()), bare(None, batch()))
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    assert any(not torch.equal(made[0][name], made[2][name]) for name in made[0])


def test_merged_weights_compute_what_the_adapter_adds(part, tiny_llama):
    """The slow reference: W + alpha / rank x B A, weight by weight."""
    module, names = part.module, dict(part.module.named_parameters())
    found = merged(module)
    bare = plain(tiny_llama)
    assert sorted(found) == sorted(name for name, _ in bare.module.named_parameters())
    with torch.no_grad():
        for name, weight in bare.module.named_parameters():
            stem = name.removesuffix(".weight")
            wanted = weight.clone()
            if f"{stem}.lora_A.default.weight" in names:
                up, down = (names[f"{stem}.lora_{kind}.default.weight"] for kind in "BA")
                wanted += CONFIG.alpha / CONFIG.rank * up @ down
            assert torch.allclose(found[name], wanted, atol=1e-6), name
            weight.copy_(found[name])
    assert torch.allclose(bare(None, batch()), part(None, batch()), atol=1e-4)


def test_with_the_adapter_off_it_is_the_model_as_it_was(part, tiny_llama):
    off, wanted, adapted = Unadapted(part), plain(tiny_llama)(None, batch()), part(None, batch())
    assert torch.equal(off(None, batch()), wanted)
    assert torch.equal(part(None, batch()), adapted)  # it is on again
    assert not torch.equal(adapted, wanted)
    assert not list(off.parameters())
    assert {name for name, weight in part.module.named_parameters() if weight.requires_grad} == {
        name for name, _ in part.module.named_parameters() if is_adapter(name)
    }


def test_only_the_adapter_gets_gradients_late_or_not(part):
    found, weights = [], LateWeights(part)
    for late in (False, True):
        part.zero_grad()
        out = part(None, batch())
        with weights.owing() if late else nullcontext([]) as debts:
            out.square().mean().backward()
        weights.settle(debts)
        found.append({name: weight.grad for name, weight in part.named_parameters()})
    for name, gradient in found[0].items():
        assert (gradient is not None) == is_adapter(name)
        assert gradient is None or torch.equal(gradient, found[1][name])


def test_layers_that_are_not_there_are_named(tiny_llama):
    with pytest.raises(UserError, match="absent_proj"):
        adapt(load(tiny_llama, Head.WORDS, 0), LoraConfig(targets=("absent_proj",)), 0)


def test_without_peft_the_next_step_is_said(monkeypatch):
    monkeypatch.setattr(adapter, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install 'plait\[align\]'"):
        adapter.check_installed()
