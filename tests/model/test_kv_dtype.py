"""Keys and values of int8: the model's logits stay near, and pieces and tapes give what the whole gives."""

import random

import pytest
import torch

from plait.kernels.choice import choose
from plait.model import check
from plait.model.config import ModelConfig
from plait.model.model import Model
from plait.spec.errors import UserError
from tests.model.test_decode_tape import PAGE, step
from tests.tiny import VOCAB, tiny_folder

TOKENS = (torch.arange(60) * 37 + 11) % VOCAB


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("page", [1, 16])
def test_logits_stay_near(dtype, page, tiny_llama):
    whole = check.cut(TOKENS, [(0, 0, 60)], page)
    logits = [
        Model(ModelConfig(str(tiny_llama), dtype=dtype, kv_dtype=kv, slots=256, page=page)).forward(whole)
        for kv in ("auto", "int8")
    ]
    gap = float((logits[0] - logits[1]).norm() / logits[0].norm())
    assert 0 < gap <= 0.05


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_pieces_read_what_the_whole_reads(family, tmp_path):
    """Also a prompt computed at once reads its own keys as they were rounded: no mode sees others."""
    model = Model(
        ModelConfig(
            str(tiny_folder(tmp_path, family)), kv_dtype="int8", slots=256, page=16, exact=family != "gemma2"
        )
    )
    whole = model.forward(check.cut(TOKENS, [(0, 0, 60)], 16)).clone()
    for pool in model.pool.layers:
        pool.fill_(127)
    rows = [model.forward(check.cut(TOKENS, [(0, a, b)], 16)).clone() for a, b in ((0, 7), (7, 40), (40, 59))]
    rows.append(model.forward(check.cut(TOKENS, [(0, 59, 60)], 16)).clone())
    pieces = torch.cat(rows)
    if (
        family == "gemma2"
    ):  # not exact: a whole number may turn with the last bits of what it was rounded from
        assert (pieces - whole).norm() <= 0.05 * whole.norm()
    else:
        assert torch.equal(pieces, whole)


@pytest.mark.skipif(choose().native is None, reason="native kernels are not built")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_tape_gives_the_models_logits(dtype, tiny_llama):
    config = ModelConfig(str(tiny_llama), dtype=dtype, kv_dtype="int8", slots=1024, page=PAGE)
    model = Model(config)
    for seed, rows in ((1, 3), (2, 8), (3, 1)):
        inputs = step(random.Random(seed), rows)
        for kept in model.pool.layers:
            kept.random_(-127, 128, generator=torch.Generator().manual_seed(seed))
            kept[..., -4 * kept.shape[3] // (16 + 4) :].view(torch.float32).fill_(0.01)
        before = [kept.clone() for kept in model.pool.layers]
        theirs_BV = model._compute(inputs).clone()
        for kept, value in zip(model.pool.layers, before, strict=True):
            kept.copy_(value)
        ours_BV = model._tapes.play(inputs)
        assert ours_BV is not None, "no tape was recorded"
        assert (ours_BV - theirs_BV).norm() <= 3e-2 * theirs_BV.norm()


def test_options_that_do_not_fit_are_refused(tiny_llama):
    with pytest.raises(UserError, match="auto, float32, bfloat16, int8"):
        Model(ModelConfig(str(tiny_llama), kv_dtype="int4"))
    with pytest.raises(UserError, match="choose auto or int8"):
        Model(ModelConfig(str(tiny_llama), kv_dtype="bfloat16"))
