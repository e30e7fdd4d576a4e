"""Feed-forward layers whose widths differ from layer to layer, as `plait compress` writes them.

transformers' configurations have one width for all layers. config.json's `plait_layers` has an entry for each
layer, `{"intermediate_size": width}`; the module is made with the widest and its projections are replaced.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from plait.spec.errors import UserError

FIELD = "plait_layers"


def widths_of(config: Any) -> tuple[int, ...] | None:
    """The width of each layer; None: all have that of the configuration.

    Raises:
        UserError: the field does not say one width for each layer.
    """
    told = getattr(config, FIELD, None)
    if told is None:
        return None
    widths = [each.get("intermediate_size") if isinstance(each, Mapping) else None for each in told]
    if len(widths) != config.num_hidden_layers or not all(isinstance(w, int) and w > 0 for w in widths):
        raise UserError(
            f"config.json's {FIELD} needs an intermediate_size for each of {config.num_hidden_layers} "
            "layers: write the folder again with `plait compress`",
            "model",
        )
    return tuple(widths)


def load_uneven(
    config: Any, widths: tuple[int, ...], state: Mapping[str, Tensor], attention: str, dtype: torch.dtype
) -> nn.Module:
    """A module with such widths and these weights.

    Raises:
        UserError: weights are missing or of other sizes.
    """
    with torch.random.fork_rng(devices=()):
        module = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype)
    for part, width in zip((p for n, p in module.named_modules() if n.endswith(".mlp")), widths, strict=True):
        for name in ("gate_proj", "up_proj", "down_proj"):
            old: nn.Linear = getattr(part, name)
            sizes = (width, old.out_features) if name == "down_proj" else (old.in_features, width)
            setattr(part, name, nn.Linear(*sizes, bias=old.bias is not None, dtype=dtype))
    wrong = [n for n, p in module.named_parameters() if n not in state or state[n].shape != p.shape]
    if wrong:
        raise UserError(f"the folder lacks weights that config.json names: {', '.join(wrong[:5])}", "model")
    module.load_state_dict(state, strict=False)
    return module
