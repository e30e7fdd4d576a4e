"""Tensor parallel: which rows and columns of each weight a process has, by the model's own plan.

A product that is `colwise` is cut by outputs: by heads in attention, in equal shares elsewhere. The one that
takes its outputs is `rowwise`, cut by inputs: what the processes have is summed. Norms of single heads, the
embedding and the output head are whole on every process: logits are the same bits everywhere, so each process
draws the same token and nothing has to be gathered or told.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from plait.model.config import Rank
from plait.model.world import World
from plait.spec.errors import Unsupported
from plait.spec.shape import LayerShape

COLUMNS, ROWS = "colwise", "rowwise"
WHOLE = "replicated_with_grad_allreduce"
"""Style of a norm over a head's values: every process has all of it."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Part of a parameter: indices [first, past) of dimension `dim`; not `owned`: zeros instead."""

    dim: int
    first: int
    past: int
    owned: bool = True
    whole: int = 0
    """Indices that the whole parameter has in this dimension."""

    def of(self, whole: Tensor) -> Tensor:
        """The part of a whole parameter."""
        return whole.narrow(self.dim, self.first, self.past - self.first)


class Reduced:
    """A product over a share of the inputs, then the sum over all shares."""

    __slots__ = ("product", "world")

    def __init__(self, product: Callable[[Tensor], Tensor], world: World) -> None:
        self.product, self.world = product, world

    def __call__(self, x: Tensor) -> Tensor:
        return self.world.sum(self.product(x))


def cut(module: nn.Module, layer: LayerShape, rank: Rank) -> dict[str, Cut]:
    """Make the weights of a whole module those of its share, not filled yet; gives the part of each.

    Raises:
        Unsupported: the model has no plan, or one that asks for what we do not do.
    """
    cuts: dict[str, Cut] = {}
    if rank.tp == 1:
        return cuts
    for name, style in styles(module).items():
        part = module.get_submodule(name)
        if style == WHOLE:
            continue
        if not isinstance(part, nn.Linear) or style not in (COLUMNS, ROWS):
            raise Unsupported(
                f"tp is {rank.tp}, but the model's plan wants {style!r} of {name}: use tp 1", "tp"
            )
        cuts |= _cut_linear(name, part, style, _attention(module, name), layer, rank)
    for part in module.modules():
        if hasattr(part, "num_key_value_groups"):
            part.num_key_value_groups = len(rank.share(layer.heads)) // len(rank.share(layer.kv_heads))
    return cuts


def styles(module: nn.Module) -> dict[str, str]:
    """Each module that the plan names -> how it is divided.

    Raises:
        Unsupported: there is no plan.
    """
    plan = module.config.base_model_tp_plan
    if not plan:
        kind = module.config.model_type
        raise Unsupported(f"transformers has no tensor-parallel plan for {kind}: use tp 1", "tp")
    prefix = re.escape(module.base_model_prefix)
    patterns = {
        re.compile(prefix + r"\." + re.escape(p).replace(r"\*", r"\d+")): style for p, style in plan.items()
    }
    found = {}
    for name, _ in module.named_modules():
        style = next((style for pattern, style in patterns.items() if pattern.fullmatch(name)), None)
        if style is not None:
            found[name] = style
    return found


def reduce(module: nn.Module, world: World) -> None:
    """Let the products whose inputs are shared sum what the processes have."""
    for name, style in styles(module).items():
        if style == ROWS:
            part = module.get_submodule(name)
            part.forward = Reduced(part.forward, world)


def _attention(module: nn.Module, name: str) -> bool:
    parent = module.get_submodule(name.rpartition(".")[0])
    return type(parent).__name__.endswith("Attention")


def _cut_linear(
    name: str, part: nn.Linear, style: str, attention: bool, layer: LayerShape, rank: Rank
) -> dict[str, Cut]:
    dim = 0 if style == COLUMNS else 1
    features = part.weight.shape[dim]
    units = features
    if attention:
        units = layer.kv_heads if features == layer.kv_heads * layer.head_dim else layer.heads
    if features % units or (not attention and units % rank.tp):
        raise Unsupported(f"tp is {rank.tp}, but {name} has {features} values, which do not divide so", "tp")
    each, share = features // units, rank.share(units)
    first, past = share.start * each, share.stop * each
    cuts = {f"{name}.weight": Cut(dim, first, past, whole=features)}
    part.weight = nn.Parameter(cuts[f"{name}.weight"].of(part.weight.detach()), requires_grad=False)
    if style == ROWS:
        part.in_features = past - first
        if part.bias is not None:  # added once
            cuts[f"{name}.bias"] = Cut(0, 0, len(part.bias), owned=rank.column == 0)
        return cuts
    part.out_features = past - first
    if part.bias is not None:
        cuts[f"{name}.bias"] = Cut(0, first, past)
        part.bias = nn.Parameter(cuts[f"{name}.bias"].of(part.bias.detach()), requires_grad=False)
    return cuts
