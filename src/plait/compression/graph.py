"""What a network is made of, for compression: its layers, and which channels can only be removed together.

`trace` runs the network once and asks torch-pruning's dependency graph (Fang et al., CVPR 2023) which layers
are coupled: both ends of a residual sum, a depthwise convolution and what feeds it, a layer and its readers.
Channels kept are whole multiples, so that the closed-form costs are those of the network that is really cut.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch_pruning as tp
from torch import Tensor, nn

from plait.compression.complexity import Layer
from plait.compression.space import Space
from plait.spec.errors import Unsupported
from plait.spec.policy import CompressionPolicy, Knob, Slot, Tie, Unit

Forward = Callable[[nn.Module, Tensor], Tensor]
"""How a module is called: its logits from one batch."""


@dataclass(frozen=True, slots=True)
class CutConfig:
    """What may be chosen for the layers of a network."""

    ratios: tuple[float, ...] = (0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.0)
    """Fractions of the channels to remove, descending; each is rounded so that a whole multiple is kept."""
    bits: tuple[float, ...] = (2.0, 3.0, 4.0, 6.0, 8.0)
    """Of weights and of activations, ascending."""
    multiple: int = 8
    """Channels kept are a multiple of this; odd counts are slower than even ones on every machine."""
    fixed_bits: float = 8.0
    """Of layers that are not searched: the first, the last, and those named in `answers`."""
    answers: tuple[str, ...] = field(default=())
    """Layers, apart from the last, whose outputs are the network's: never cut, and their bits are fixed."""


@dataclass(frozen=True, slots=True)
class Network:
    """A traced network: layers in the order of their work, and groups of coupled output channels."""

    layers: tuple[Layer, ...]
    groups: tuple[tuple[str, ...], ...]
    """Names of layers whose output channels are removed together; each layer is in one group."""
    space: Space


def trace(module: nn.Module, example: Tensor, forward: Forward, config: CutConfig) -> Network:
    """Run `module` on one input (1, ...) and find its layers, groups and space.

    Raises:
        Unsupported: it has no convolution or linear layer, or a grouped one that is not depthwise.
    """
    found = _observe(module, example, forward)
    if not found:
        raise Unsupported("the network has no convolution and no linear layer", "model")
    names = {layer: name for name, layer in module.named_modules()}
    graph = build(module, example, forward)
    answers = {*config.answers, names[found[-1].layer]}
    groups, fed_by = _groups(graph, [seen.layer for seen in found], answers, names)
    fixed = {names[found[0].layer], *answers}
    layers = []
    for seen in found:
        name = names[seen.layer]
        layers.append(
            Layer(
                name=name,
                macs=seen.macs,
                weights=seen.layer.weight.numel(),
                inputs=seen.inputs,
                outputs=seen.outputs,
                channels=seen.layer.weight.shape[0],
                unit=None if name in fixed else name,
                cut_by=None if name in answers else name,
                fed_by=fed_by.get(name),
                depthwise=_depthwise(seen.layer),
                fixed_bits=config.fixed_bits,
            )
        )
    return Network(tuple(layers), groups, _space(layers, groups, config))


def build(module: nn.Module, example: Tensor, forward: Forward) -> tp.DependencyGraph:
    """The dependency graph of a module."""
    return tp.DependencyGraph().build_dependency(
        module, example_inputs=example, forward_fn=lambda m, x: forward(m, x), verbose=False
    )


def kept(channels: int, ratio: float, multiple: int) -> int:
    """Channels that are left of so many: a whole multiple and never none, or all of them."""
    if channels <= multiple or not ratio:
        return channels
    return min(channels, max(multiple, round(channels * (1 - ratio) / multiple) * multiple))


def prune(
    module: nn.Module, example: Tensor, forward: Forward, network: Network, policy: CompressionPolicy
) -> None:
    """Remove the channels that `policy` cuts, really, in place: of each group those of least norm.

    A channel's norm is the root of the squares of all weights of the group that write it (L2, as in SeerNet).
    """
    graph = build(module, example, forward)
    layers = dict(module.named_modules())
    # Chosen before anything is cut: a cut takes inputs from the weights that norms are made of.
    chosen = {
        group: weakest([layers[name] for name in group], policy.choice(group[0]).prune)
        for group in network.groups
    }
    for group, channels in chosen.items():
        if channels:
            head = layers[group[0]]
            graph.get_pruning_group(head, _cutter(head), idxs=channels).prune()


def weakest(members: Sequence[nn.Module], ratio: float | None) -> list[int]:
    """The output channels to remove from coupled layers, ascending."""
    channels = members[0].weight.shape[0]
    drop = channels - round(channels * (1 - (ratio or 0)))
    norms = sum(layer.weight.detach().flatten(1).square().sum(1) for layer in members)
    found: list[int] = norms.argsort()[:drop].sort().values.tolist()
    return found


@dataclass(frozen=True, slots=True)
class _Seen:
    layer: nn.Conv2d | nn.Linear
    macs: int
    inputs: int
    outputs: int


def _observe(module: nn.Module, example: Tensor, forward: Forward) -> list[_Seen]:
    """Layers in the order in which one forward calls them."""
    seen: list[_Seen] = []

    def note(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        places = output.numel() // (output.shape[0] * layer.weight.shape[0])
        seen.append(_Seen(layer, layer.weight.numel() * places, args[0][0].numel(), output[0].numel()))

    kinds = (nn.Conv2d, nn.Linear)
    hooks = [part.register_forward_hook(note) for part in module.modules() if isinstance(part, kinds)]
    training = module.training
    with torch.no_grad():
        forward(module.eval(), example)
    module.train(training)
    for hook in hooks:
        hook.remove()
    return seen


def _groups(
    graph: tp.DependencyGraph, found: Sequence[nn.Module], answers: set[str], names: dict[nn.Module, str]
) -> tuple[tuple[tuple[str, ...], ...], dict[str, str]]:
    """Groups of names, in order, and for each layer the first of the group that feeds it."""
    groups, fed_by = [], {}
    placed = {id(layer) for layer in found if names[layer] in answers}
    order = {id(layer): number for number, layer in enumerate(found)}
    for layer in found:
        if id(layer) in placed:
            continue
        writers, readers = [], []
        for dependency, _ in graph.get_pruning_group(layer, _cutter(layer), idxs=[0]):
            target = dependency.target.module
            if id(target) in order:
                writes = graph.is_out_channel_pruning_fn(dependency.handler)
                (writers if writes else readers).append(target)
        members = sorted({id(part): part for part in writers}.values(), key=lambda part: order[id(part)])
        placed |= {id(part) for part in members}
        if any(names[part] in answers for part in members):
            continue
        groups.append(tuple(names[part] for part in members))
        readers += [part for part in members if _depthwise(part)]  # they read what they write
        fed_by |= {names[part]: groups[-1][0] for part in readers}
    return tuple(groups), fed_by


def _cutter(layer: nn.Module) -> Callable[..., nn.Module]:
    if isinstance(layer, nn.Linear):
        return tp.prune_linear_out_channels
    if _depthwise(layer):
        return tp.prune_depthwise_conv_out_channels
    if layer.groups > 1:
        raise Unsupported(f"a convolution of {layer.groups} groups that is not depthwise", "model")
    return tp.prune_conv_out_channels


def _depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.groups > 1 and layer.groups == layer.out_channels


def _space(layers: Sequence[Layer], groups: Sequence[tuple[str, ...]], config: CutConfig) -> Space:
    """A unit for each layer; ratios of a group are tied."""
    channels = {layer.name: layer.channels for layer in layers}
    grouped = {name for group in groups for name in group}
    units = []
    for layer in layers:
        bits = config.bits if layer.unit else ()
        ratios = _ratios(channels[layer.name], config) if layer.name in grouped else ()
        units.append(Unit(layer.name, prune=ratios, weight_bits=bits, act_bits=bits))
    ties = [Tie(tuple(Slot(name, Knob.PRUNE) for name in group)) for group in groups if len(group) > 1]
    return Space(units, ties)


def _ratios(channels: int, config: CutConfig) -> tuple[float, ...]:
    """The ratios that keep whole multiples, each once."""
    counts = sorted({kept(channels, ratio, config.multiple) for ratio in config.ratios})
    return tuple(1 - count / channels for count in counts)
