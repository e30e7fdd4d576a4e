"""Start-up checks: our forward against transformers' own, and exactness bit by bit."""

import torch
from torch import Tensor, nn

from plait.model.attend import NAME
from plait.model.inputs import StepInputs
from plait.model.stage import Forward, Whole
from plait.spec.errors import Unsupported

TOKENS = 24
SLACK = {torch.float32: 2e-4, torch.bfloat16: 6e-2, torch.int8: 6e-2}
"""Largest difference of logits allowed, as a share of their largest value; int8: of keys and values."""


def example(vocab: int, max_len: int, slots: int) -> Tensor:
    """Token ids [T] of a tiny prompt that fits the model and its pool."""
    count = max(1, min(TOKENS, max_len, slots // 4))
    return (torch.arange(count) * 7919 + 13) % vocab


def reference(module: nn.Module, tokens_T: Tensor, forward: Forward | None = None) -> Tensor:
    """Logits [T, V] of one sequence by transformers' own attention and linear layers.

    Args:
        forward: that of a module which is part of a model; then what it gives, [T, ...].
    """
    forward = forward or Whole(module)
    softcap = getattr(module.config, "attn_logit_softcapping", None)
    module.set_attn_implementation("eager" if softcap else "sdpa")
    with torch.inference_mode():
        logits_TV = forward(tokens_T[None], None, 0)[0].float()
    module.set_attn_implementation(NAME)
    return logits_TV


def compare(ours_TV: Tensor, theirs_TV: Tensor, dtype: torch.dtype, slack: float = 1) -> None:
    """Refuse to serve a model whose logits are not those of transformers; `slack` as in `agree`.

    Raises:
        Unsupported: with the numbers.
    """
    if not agree(ours_TV, theirs_TV, dtype, slack):
        gap, size = float((ours_TV - theirs_TV).abs().max()), float(theirs_TV.abs().max())
        raise Unsupported(
            f"self-check failed: logits differ from transformers' by {gap:.2e} where the largest "
            f"is {size:.2e}; this model cannot be served correctly",
            "model",
        )


def agree(ours_TV: Tensor, theirs_TV: Tensor, dtype: torch.dtype, slack: float = 1) -> bool:
    """Whether logits are equal as far as the type's rounding goes; `slack` widens what that means."""
    gap = float((ours_TV - theirs_TV).abs().max())
    return gap <= slack * SLACK[dtype] * max(float(theirs_TV.abs().max()), 1e-3)


def cut(tokens_T: Tensor, pieces: list[tuple[int, int, int]], page: int) -> StepInputs:
    """A step of several pieces of copies of one sequence.

    Args:
        pieces: (copy, first, past) of each row; each copy has a table and slots of its own.
    """
    pages = -(-len(tokens_T) // page)
    copies = max(copy for copy, _, _ in pieces) + 1
    tables_RP = torch.arange(copies * pages, dtype=torch.int32).view(copies, pages)
    at = [torch.arange(first, past) for _, first, past in pieces]
    slots = [a + copy * pages * page for a, (copy, _, _) in zip(at, pieces, strict=True)]
    starts = torch.tensor([0] + [past - first for _, first, past in pieces]).cumsum(0)
    return StepInputs(
        tokens_T=tokens_T[torch.cat(at)],
        positions_T=torch.cat(at),
        slots_T=torch.cat(slots).int(),
        starts_R=starts.int(),
        lens_R=torch.tensor([past for _, _, past in pieces], dtype=torch.int32),
        rows_R=torch.tensor([copy for copy, _, _ in pieces], dtype=torch.int32),
        tables_RP=tables_RP,
        wanted_L=torch.arange(int(starts[-1])),
    )


def refusal_of_exactness(module: nn.Module, dtype: torch.dtype, tp: int = 1) -> str | None:
    """Why results of this model, its layers shared by `tp` processes, may depend on the batch; None if they
    may not."""
    config = module.config
    if dtype != torch.float32:
        return "only float32 products have a fixed order of summation"
    if any("expert" in name for name, _ in module.named_modules()):
        return "its experts compute as many tokens at once as the batch sends them"
    width = next(
        (getattr(config, n) for n in ("intermediate_size", "ffn_dim", "n_inner") if hasattr(config, n)), None
    )
    capped = getattr(config, "final_logit_softcapping", None)
    # Torch computes exp, tanh and the like 32 values at a time, and what is left over with other bits.
    if (width or 32 * tp) // tp % 32 or (capped and config.vocab_size % 32):
        return (
            f"its feed-forward width (over {tp}), or its vocabulary with capped logits, is no multiple of 32"
        )
    return None
