"""Attention of transformers' modules whose keys and values are rounded as the engine's int8 pool rounds them.

A head of a token has one scale for its key, after rotation, and one for its value. For measuring: the whole
text is computed at once, as a prompt is, and every key is rounded before it is read. Bits other than 8 are
rounded alike, though no pool keeps them.
"""

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "plait_rounded_kv"


def rounded(x: Tensor, bits: float) -> Tensor:
    """Each last dimension on a grid of its own around zero."""
    half = 2 ** (int(bits) - 1) - 1
    scale = x.float().abs().amax(-1, keepdim=True).clamp_min(1e-12) / half
    return ((x.float() / scale).round() * scale).to(x.dtype)


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **others: Any
) -> tuple[Tensor, Tensor | None]:
    """What transformers calls; `module.kv_bits` says how fine the grids are, 16 leaves keys and values."""
    bits = module.kv_bits
    if bits < 16:
        key, value = rounded(key, bits), rounded(value, bits)
    return sdpa_attention_forward(module, query, key, value, mask, **others)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
