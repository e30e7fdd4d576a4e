"""`Decoder`: a language model as compression sees it: blocks, their linear layers, and what may be chosen.

Units are named as the module's parts are: `model.layers.3.mlp.up_proj` has weight bits, `model.layers.3.mlp`
a width, `model.layers.3.self_attn` KV heads and KV bits, and `model.layers` a depth. Depth is one gene: the
share of the blocks that is left out, those first that change their input least.
Pruning is for blocks of gated feed-forward layers and plain projections (Llama, Mistral, Qwen and their
like); other decoders have bits and depth.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from plait.compression.graph import kept
from plait.compression.space import Space
from plait.compression.targets import Target, restrict
from plait.model.load import load_config
from plait.model.pack import SIBLINGS
from plait.model.widths import widths_of
from plait.spec.errors import Unsupported, UserError
from plait.spec.policy import Knob, Slot, Tie, Unit
from plait.spec.schemes import Scheme

FULL_BITS = 16.0
"""Weights, keys and values that are left alone are bf16."""
ATTENTION = frozenset(("q_proj", "k_proj", "v_proj", "o_proj"))
GATED = frozenset(("gate_proj", "up_proj", "down_proj"))


@dataclass(frozen=True, slots=True)
class Linear:
    """One linear layer of a block."""

    name: str
    """Its full name in the module."""
    block: int
    outputs: int
    inputs: int

    @property
    def kind(self) -> str:
        """What it is called within its block's parts."""
        return self.name.rpartition(".")[2]

    @property
    def parent(self) -> str:
        """The module that it is a part of."""
        return self.name.rpartition(".")[0]


@dataclass(frozen=True, slots=True)
class Storage:
    """How weights of so many bits lie in a target's files."""

    group: int
    """Inputs that share a scale."""
    grouped_bits: float = 4.0
    """Above so many bits an output has one scale."""

    def scheme(self, bits: float) -> Scheme:
        """The form of whole numbers of `bits`."""
        return Scheme(int(bits), self.group if bits <= self.grouped_bits else None, True, ())

    def width(self, bits: float) -> float:
        """Bits that a weight takes."""
        return bits

    def scales(self, linear: Linear, bits: float) -> float:
        """Scales of a whole layer."""
        if bits >= FULL_BITS:
            return 0.0
        return linear.outputs * (linear.inputs / self.group if bits <= self.grouped_bits else 1)


@dataclass(frozen=True, slots=True)
class Decoder:
    """Sizes and names."""

    blocks: str
    """Name of the list of blocks."""
    count: int
    """Blocks."""
    linears: tuple[Linear, ...]
    """Of all blocks, in order."""
    hidden: int
    kv_heads: int
    group: int
    """Query heads of a KV head."""
    head_dim: int
    ffn: int
    rest: int
    """Parameters outside of the blocks' linear layers; embedding and head count once where they are tied."""
    prunable: bool
    """Its widths and heads can be cut."""

    def mlp(self, block: int) -> str:
        """The unit that has a block's width."""
        return f"{self.blocks}.{block}.mlp"

    def attention(self, block: int) -> str:
        """The unit that has a block's KV heads and KV bits."""
        return f"{self.blocks}.{block}.self_attn"


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """What may be chosen for a decoder."""

    bits: tuple[float, ...] = (2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
    """Of weights, ascending; 16 leaves them alone. One level: they are fixed."""
    group: int = 64
    """Inputs that share a scale at 4 bits and fewer: 32, 64 or 128; it has to divide all inputs."""
    depths: tuple[float, ...] = (0.0,)
    """Shares of the blocks to leave out, descending; each is rounded to whole blocks."""
    widths: tuple[float, ...] = (0.0,)
    """Shares of a feed-forward layer's width to remove, descending; whole multiples of 64 are kept."""
    heads: tuple[float, ...] = (0.0,)
    """Shares of the KV heads to remove, with their query heads, descending; rounded to whole heads."""
    kv_bits: tuple[float, ...] = (16.0,)
    """Of keys and values, ascending."""


def open_decoder(folder: Path) -> Decoder:
    """Describe a folder's model; no weights are read.

    Raises:
        Unsupported: plait does not serve it, or it has no linear layers that could be compressed.
    """
    config = load_config(folder)
    if widths_of(config) is not None:
        raise Unsupported(f"{folder.name} was cut already: name the folder that it was made from", "model")
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config)
    return describe(module)


def describe(module: nn.Module) -> Decoder:
    """Names and sizes of a transformers decoder.

    Raises:
        Unsupported: it has experts, or no linear layers of torch's own.
    """
    config = module.config
    found = [
        name
        for name, part in module.named_modules()
        if isinstance(part, nn.ModuleList) and len(part) == config.num_hidden_layers
    ]
    if not found or any("expert" in name for name, _ in module.named_parameters()):
        raise Unsupported(f"{config.model_type}: only decoders of plain blocks are compressed", "model")
    blocks = found[0]
    linears = tuple(
        Linear(name, int(name.removeprefix(f"{blocks}.").split(".")[0]), *part.weight.shape)
        for name, part in module.named_modules()
        if type(part) is nn.Linear and name.startswith(f"{blocks}.")
    )
    if not linears:
        raise Unsupported(f"{config.model_type} has no linear layers of torch's own in its blocks", "model")
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return Decoder(
        blocks=blocks,
        count=config.num_hidden_layers,
        linears=linears,
        hidden=config.hidden_size,
        kv_heads=kv_heads,
        group=heads // kv_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        ffn=next((x.outputs for x in linears if x.kind == "gate_proj"), 0),
        rest=sum(p.numel() for p in module.parameters()) - sum(x.outputs * x.inputs for x in linears),
        prunable={x.kind for x in linears} == ATTENTION | GATED,
    )


def space_of(decoder: Decoder, config: DecoderConfig, target: Target) -> Space:
    """All policies that `target` can load.

    Raises:
        UserError: a group does not divide a layer's inputs, there is nothing to choose, or the target has
            no kernel for what may be chosen.
        Unsupported: this decoder's widths and heads cannot be cut.
    """
    _check_groups(decoder, config, target)
    cuts = config.widths != (0.0,) or config.heads != (0.0,)
    if cuts and not decoder.prunable:
        raise Unsupported("widths and heads are cut in Llama-like blocks only: leave them out", "widths")
    units = [Unit(decoder.blocks, prune=_levels(decoder.count, config.depths, 1))]
    ties = []
    for block in range(decoder.count):
        attention = Unit(decoder.attention(block), kv_bits=config.kv_bits)
        if cuts:
            units.append(Unit(decoder.mlp(block), prune=_levels(decoder.ffn, config.widths, 64)))
            attention = replace(attention, prune=_levels(decoder.kv_heads, config.heads, 1))
        units.append(attention)
        own = [x for x in decoder.linears if x.block == block]
        units += [Unit(x.name, weight_bits=config.bits) for x in own]
        if target.fused:
            ties += [Tie(tuple(Slot(x.name, Knob.WEIGHT_BITS) for x in part)) for part in siblings(own)]
    for name, equal in ((decoder.mlp, target.equal_widths), (decoder.attention, target.equal_heads)):
        if cuts and equal:
            ties.append(Tie(tuple(Slot(name(block), Knob.PRUNE) for block in range(decoder.count))))
    space = restrict(units, ties, replace(target, equal_widths=False))
    if not len(space):
        raise UserError(f"nothing is left to choose for {target.name}: allow more bits or cuts", "bits")
    return space


def siblings(linears: Sequence[Linear]) -> list[tuple[Linear, ...]]:
    """Layers of one parent that engines compute in one product, two or more each."""
    found = []
    for kinds in SIBLINGS:
        parents = dict.fromkeys(x.parent for x in linears if x.kind == kinds[0])
        found += [tuple(x for x in linears if x.parent == p and x.kind in kinds) for p in parents]
    return found


def _levels(whole: int, shares: Sequence[float], multiple: int) -> tuple[float, ...]:
    """Shares that keep whole multiples, each once, descending."""
    counts = sorted({kept(whole, share, multiple) for share in shares})
    return tuple(1 - count / whole for count in counts)


def storage_of(config: DecoderConfig, target: Target) -> Storage:
    """How `target` keeps weights."""
    return Storage(config.group, target.grouped_bits)


def _check_groups(decoder: Decoder, config: DecoderConfig, target: Target) -> None:
    if config.group not in target.groups:
        choices = " or ".join(map(str, target.groups))
        raise UserError(f"group is {config.group}; for {target.name} choose {choices}", "group")
    if min(config.bits) > target.grouped_bits:
        return
    for linear in decoder.linears:
        if linear.inputs % config.group:
            fits = [str(size) for size in target.groups if not linear.inputs % size]
            hint = f"choose {' or '.join(fits)}" if fits else f"choose bits above {target.grouped_bits:g}"
            raise UserError(
                f"groups of {config.group} do not divide the {linear.inputs} inputs of {linear.name}: {hint}",
                "group",
            )
