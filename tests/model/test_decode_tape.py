"""Tapes of decode steps give what the model's own forward gives, or none is used."""

import random

import pytest
import torch

from plait.kernels.choice import choose
from plait.model.config import ModelConfig
from plait.model.inputs import StepInputs
from plait.model.model import Model
from tests.tiny import FAMILIES, VOCAB, tiny_folder

pytestmark = pytest.mark.skipif(choose().native is None, reason="native kernels are not built")
TAPED = ("llama", "mistral", "qwen2", "qwen3", "gpt_neox", "gemma2", "phi3")
EAGER = ("opt", "gpt2", "qwen3_moe")
"""Families whose forward does something that a tape does not hold."""
PAGE = 4


def step(rng, rows, extra_rows=0):
    """A decode step of `rows` requests of random lengths, whose tables lie anywhere in the pool."""
    lens = [rng.randrange(1, 40) for _ in range(rows)]
    pages = 10
    order = rng.sample(range(1, 1 + 12 * pages), 12 * pages)
    tables = torch.tensor(order, dtype=torch.int32).view(12, pages)
    which = rng.sample(range(12), rows)
    positions = torch.tensor([length - 1 for length in lens])
    slots = [
        int(tables[row, (n - 1) // PAGE]) * PAGE + (n - 1) % PAGE for row, n in zip(which, lens, strict=True)
    ]
    return StepInputs(
        tokens_T=torch.tensor([rng.randrange(VOCAB) for _ in lens]),
        positions_T=positions,
        slots_T=torch.tensor(slots, dtype=torch.int32),
        starts_R=torch.arange(rows + 1, dtype=torch.int32),
        lens_R=torch.tensor(lens, dtype=torch.int32),
        rows_R=torch.tensor(which, dtype=torch.int32),
        tables_RP=tables,
        wanted_L=torch.arange(rows),
    )


def filled(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for layer in model.pool.layers:
        layer.copy_(torch.randn(layer.shape, generator=generator).to(layer.dtype) * 0.3)


@pytest.mark.parametrize("family", TAPED)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_tape_gives_the_models_logits(family, dtype, tmp_path):
    model = Model(ModelConfig(str(tiny_folder(tmp_path, family)), dtype=dtype, slots=1024, page=PAGE))
    rng = random.Random(3)
    for rows in (1, 5, 5, 7, 1, 2):
        inputs = step(rng, rows)
        filled(model, rows)
        theirs_BV = model._compute(inputs).clone()
        after = [layer.clone() for layer in model.pool.layers]
        filled(model, rows)
        ours_BV = model._tapes.play(inputs)
        assert ours_BV is not None, "no tape was recorded"
        slack = (1e-4 if dtype == "float32" else 6e-2) * float(theirs_BV.abs().max())
        assert (ours_BV - theirs_BV).abs().max() <= slack
        for ours, theirs in zip(model.pool.layers, after, strict=True):
            lanes = len(ours) - PAGE  # everything but the spare page: idle rows touch no request's slots
            gap = (ours[:lanes].float() - theirs[:lanes].float()).abs().max()
            assert gap <= (1e-4 if dtype == "float32" else 6e-2) * float(theirs.float().abs().max())
    assert len(model._tapes._tapes) >= 3


def test_some_rows_want_no_logits(tiny_llama):
    model = Model(ModelConfig(str(tiny_llama), slots=1024, page=PAGE))
    inputs = step(random.Random(1), 4)
    filled(model, 1)
    every = model._compute(inputs).clone()
    some = StepInputs(*(getattr(inputs, name) for name in StepInputs.__slots__[:-1]), torch.tensor([2, 0]))
    got = model.forward(some)
    assert torch.allclose(got, every[[2, 0]], rtol=1e-3, atol=1e-4 * float(every.abs().max()))


@pytest.mark.parametrize("family", EAGER)
def test_what_cannot_be_recorded_is_computed(family, tmp_path, caplog):
    assert set(FAMILIES) == {*TAPED, *EAGER}
    model = Model(ModelConfig(str(tiny_folder(tmp_path, family)), slots=1024, page=PAGE))
    inputs = step(random.Random(2), 3)
    filled(model, 2)
    want = model._compute(inputs).clone()
    assert torch.equal(model.forward(inputs), want)
    assert "decode steps go without tapes" in caplog.text


def test_exact_mode_has_no_tapes(tiny_llama):
    assert Model(ModelConfig(str(tiny_llama), slots=64, page=PAGE, exact=True))._tapes is None
