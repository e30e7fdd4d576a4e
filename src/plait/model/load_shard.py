"""Loads one process's share of a model: it reads its slices of the weights, and nothing else of them."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.initialization import no_init_weights

from plait.model import shard, stage
from plait.model.attend import NAME
from plait.model.shard import Cut
from plait.model.weights_file import files_of
from plait.model.widths import widths_of
from plait.model.world import World
from plait.spec.errors import Unsupported, UserError
from plait.spec.shape import LayerShape


def load_share(
    folder: Path, config: Any, dtype: torch.dtype, layer: LayerShape, world: World
) -> tuple[nn.Module, dict[str, Cut]]:
    """The module of this process, in evaluation mode, without gradients; and the part that it has of each
    parameter that is divided.

    Args:
        layer: sizes of a whole layer.

    Raises:
        Unsupported: the model has no plan to divide it so, or its layers differ in width.
        UserError: weights are missing, or of other sizes than the configuration says.
    """
    if widths_of(config) is not None:
        raise Unsupported("layers of different widths are not divided: use tp 1 and pp 1", "tp")
    with no_init_weights():  # memory that nobody writes is not taken: only our share will be
        module = AutoModelForCausalLM.from_config(config, attn_implementation=NAME, dtype=dtype)
    tied = dict(module.all_tied_weights_keys)
    stage.trim(module, world)
    cuts = shard.cut(module, layer, world.rank)
    _fill(module, folder, cuts, tied, dtype)
    if world.rank.tp > 1:
        shard.reduce(module, world)
    return module.eval().requires_grad_(False), cuts


def _fill(
    module: nn.Module, folder: Path, cuts: dict[str, Cut], tied: dict[str, str], dtype: torch.dtype
) -> None:
    """Read every parameter of the module, each the part of it that the module has."""
    files = files_of(folder)
    rules = [r for r in get_model_conversion_mapping(module) if isinstance(r, WeightRenaming)]
    stored = {_renamed(name, rules): name for name in files}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        source = stored.get(name) or stored.get(tied.get(name, name))
        if source is None:
            raise UserError(f"{folder} lacks weights that config.json names: {name}", "model")
        part = cuts.get(name)
        if part is not None and not part.owned:
            parameter.data = torch.zeros(parameter.shape, dtype=dtype)
            continue
        with safe_open(folder / files[source], framework="pt") as opened:  # type: ignore[no-untyped-call]
            value = _read(opened.get_slice(source), part)
        if value.shape != parameter.shape:
            raise UserError(
                f"{folder}: {source} has other sizes than config.json says: {list(value.shape)} in place of "
                f"{list(parameter.shape)}",
                "model",
            )
        parameter.data = value.to(dtype).contiguous()


def _read(whole: Any, part: Cut | None) -> Tensor:
    """Part of a stored tensor, read from its file now."""
    index = [slice(None)] * len(whole.get_shape())
    if part is not None:
        index[part.dim] = slice(part.first, part.past)
    return whole[tuple(index)]


def _renamed(name: str, rules: list[WeightRenaming]) -> str:
    """What transformers calls a stored weight: some models have other names in files."""
    for rule in rules:
        name, _ = rule.rename_source_key(name)
    return name
