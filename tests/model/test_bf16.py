"""In bf16 our logits are as close to transformers' bf16 as those are to its own float32."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from plait.kernels.choice import choose
from plait.model import check
from plait.model.config import ModelConfig
from plait.model.hub import resolve
from plait.model.model import Model
from plait.spec.errors import NotFound, UserError
from tests.tiny import FAMILIES, VOCAB, tiny_folder

PAGE = 4
PROMPTS, TOKENS = 16, 48


def distances(folder, prompts_PT):
    """Root-mean-square distance of logits over all prompts: (ours, transformers' float32) from its bf16."""
    theirs, float32 = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=dtype) for dtype in (torch.bfloat16, torch.float32)
    )
    model = Model(ModelConfig(str(folder), dtype="bfloat16", slots=1024, page=PAGE))
    mine, own = [], []
    for tokens_T in prompts_PT:
        with torch.inference_mode():
            want_TV = theirs(tokens_T[None], use_cache=False).logits[0].float()
            wide_TV = float32(tokens_T[None], use_cache=False).logits[0]
        got_TV = model.forward(check.cut(tokens_T, [(0, 0, TOKENS)], PAGE))
        mine.append((got_TV - want_TV).square().mean())
        own.append((wide_TV - want_TV).square().mean())
    return float(torch.stack(mine).mean().sqrt()), float(torch.stack(own).mean().sqrt())


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_is_as_close_to_transformers_as_its_float32_is(family, tmp_path):
    prompts_PT = torch.randint(VOCAB, (PROMPTS, TOKENS), generator=torch.Generator().manual_seed(0))
    ours, float32 = distances(tiny_folder(tmp_path, family), prompts_PT)
    assert ours <= float32, f"{ours / float32:.2f} times as far"


@pytest.mark.model
@pytest.mark.skipif(choose().native is None, reason="minutes without native kernels")
def test_the_default_model_in_bf16():
    try:
        folder = resolve("smollm2-135m")
    except (NotFound, UserError) as error:
        pytest.skip(f"the model cannot be had here: {error}")
    text = (Path(__file__).parents[2] / "LICENSE").read_text()
    ids = AutoTokenizer.from_pretrained(folder)(text).input_ids[: PROMPTS * TOKENS]
    ours, float32 = distances(folder, torch.tensor(ids).view(PROMPTS, TOKENS))
    assert ours <= float32, f"{ours / float32:.2f} times as far"
