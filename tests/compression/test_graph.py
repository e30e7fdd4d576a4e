"""Traced networks: published costs, groups, and channels that are really removed."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from plait.compression.complexity import at_levels, bops, macs, weight_bytes
from plait.compression.graph import CutConfig, Network, kept, prune, trace, weakest
from plait.compression.space import Space
from plait.compression.tasks.networks import NetworkConfig, logits, make
from plait.spec.errors import Unsupported, UserError
from plait.spec.policy import Choice, CompressionPolicy, Knob
from tests.scale import scaled

SMALL = [
    NetworkConfig("resnet20", pixels=16),
    NetworkConfig("mobilenetv2", pixels=16, width=0.35),
    NetworkConfig("vgg-small", pixels=16, width=0.125),
    NetworkConfig("resnet18", pixels=32, width=0.25),
]


def traced(config: NetworkConfig, cut: CutConfig | None = None) -> tuple[nn.Module, torch.Tensor, Network]:
    torch.manual_seed(0)
    module = make(config).eval()
    example = torch.randn(1, 3, config.pixels, config.pixels)
    return module, example, trace(module, example, logits, cut or CutConfig())


@pytest.mark.parametrize(
    ("name", "convolutions", "published"),
    [
        ("resnet18", 20, (1857.1, 116.1, 34.7)),
        ("resnet50", 53, (4185.2, 261.6, 71.1)),
        ("mobilenetv2", 52, (306.7, 19.2, 5.3)),
    ],
)
def test_bops_are_the_published_ones(name: str, convolutions: int, published: tuple[float, float, float]):
    """Convolutions at 224 x 224; the stem has at least 8 bits."""
    _, _, network = traced(NetworkConfig(name, classes=1000, pixels=224))
    stem, *others = network.layers[:-1]
    assert len(others) + 1 == convolutions
    for bits, expected in zip((32, 8, 4), published, strict=True):
        layers = [replace(stem, fixed_bits=max(bits, 8))]
        layers += [replace(layer, unit=None, fixed_bits=bits) for layer in others]
        (found,) = at_levels(bops(network.space, layers), network.space, network.space.count_D - 1)
        assert found == pytest.approx(expected, abs=0.06)


@pytest.mark.parametrize("config", SMALL, ids=lambda config: config.name)
def test_closed_forms_equal_what_is_counted_on_the_pruned_network(config: NetworkConfig):
    _, _, network = traced(config)
    index_BD = network.space.sample(np.random.default_rng(0), scaled(20) + 1)
    work_B = at_levels(macs(network.space, network.layers), network.space, index_BD)
    for index_D, work in zip(index_BD, work_B, strict=True):
        module, example, _ = traced(config)
        prune(module, example, logits, network, network.space.decode(index_D))
        counted = trace(module, example, logits, CutConfig())
        assert sum(layer.macs for layer in counted.layers) / 1e6 == pytest.approx(work, rel=1e-9)


@pytest.mark.parametrize("config", SMALL, ids=lambda config: config.name)
def test_removal_equals_masking(config: NetworkConfig):
    """Channels set to zero after their norms, and so are those really removed."""
    module, example, network = traced(config)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.1)
                part.running_var.uniform_(0.5, 1.5)
                part.weight.uniform_(0.5, 1.5)
                part.bias.normal_(0, 0.1)
    batch = torch.randn(4, *example.shape[1:])
    policy = halves(network)
    masked = removed_channels(module, example, network, policy)
    expected = logits(masked, batch)
    before = sum(p.numel() for p in module.parameters())
    prune(module, example, logits, network, policy)
    assert sum(p.numel() for p in module.parameters()) < 0.45 * before
    torch.testing.assert_close(logits(module, batch), expected, atol=1e-5, rtol=1e-4)


def halves(network: Network) -> CompressionPolicy:
    """About half of each group's channels."""
    space = network.space
    index_D = space.count_D - 1
    for number, gene in enumerate(space.genes):
        if gene.knob is Knob.PRUNE:
            index_D[number] = np.abs(np.array(gene.levels) - 0.5).argmin()
    return space.decode(index_D)


def removed_channels(
    module: nn.Module, example: torch.Tensor, network: Network, policy: CompressionPolicy
) -> nn.Module:
    """The network with weak channels zeroed wherever they are read: a mask on the inputs of each reader."""
    masked = copy.deepcopy(module)
    layers = dict(masked.named_modules())
    dead: dict[str, list[int]] = {}
    for group in network.groups:
        members = [layers[name] for name in group]
        dead |= dict.fromkeys(group, weakest(members, policy.choice(group[0]).prune))
    for layer in network.layers:
        if layer.fed_by in dead:
            weight = layers[layer.name].weight
            with torch.no_grad():
                # A depthwise layer reads and writes the same channels; its own readers leave them out.
                if not layer.depthwise:
                    weight[:, dead[layer.fed_by]] = 0
    return masked


def test_norms_of_mobilenetv2_remember_more_than_one_batch():
    module, _, _ = traced(SMALL[1])
    momenta = {part.momentum for part in module.modules() if isinstance(part, nn.BatchNorm2d)}
    assert momenta == {0.1}


def test_residual_ends_are_cut_together():
    _, _, network = traced(NetworkConfig("resnet20", pixels=16))
    widest = max(network.groups, key=len)
    assert widest == ("stem.0", "blocks.0.conv2", "blocks.1.conv2", "blocks.2.conv2")
    assert network.layers[-1].cut_by is None
    assert network.layers[0].unit is None


def test_depthwise_layers_follow_what_feeds_them():
    _, _, network = traced(NetworkConfig("mobilenetv2", pixels=16, width=0.35))
    depthwise = [layer for layer in network.layers if layer.depthwise]
    assert len(depthwise) == 17
    assert all(
        any(layer.name in group and layer.fed_by in group for group in network.groups) for layer in depthwise
    )


def test_channels_kept_are_whole_multiples():
    _, _, network = traced(NetworkConfig("resnet20", pixels=16))
    channels = {layer.name: layer.channels for layer in network.layers}
    for gene in network.space.genes:
        if gene.knob is Knob.PRUNE:
            counts = [channels[gene.slots[0].unit] * (1 - ratio) for ratio in gene.levels]
            assert all(count % 8 == 0 for count in counts)
            assert len(set(counts)) == len(counts)


@pytest.mark.parametrize("channels", [1, 8, 12, 20, 64])
def test_no_more_channels_are_kept_than_there_are(channels: int):
    assert kept(channels, 0.0, 8) == channels
    for ratio in (0.1, 0.25, 0.5, 0.9):
        left = kept(channels, ratio, 8)
        assert 0 < left <= channels
        assert left == channels or left % 8 == 0


def test_bytes_of_a_whole_network():
    module, _, network = traced(NetworkConfig("resnet20", pixels=16), CutConfig(bits=(8.0,), ratios=(0.0,)))
    weights = sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Conv2d | nn.Linear))
    channels = sum(layer.channels for layer in network.layers)
    (found,) = at_levels(
        weight_bytes(network.space, network.layers), network.space, np.zeros((1, 0), np.int64)
    )
    assert found == weights + 4 * channels


def test_networks_that_cannot_be_cut_are_refused():
    with pytest.raises(Unsupported, match="no convolution"):
        trace(nn.Flatten(), torch.randn(1, 3, 4, 4), logits, CutConfig())
    grouped = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(8, 4, 1), nn.Flatten())
    with pytest.raises(Unsupported, match="2 groups"):
        trace(grouped, torch.randn(1, 4, 4, 4), logits, CutConfig())
    with pytest.raises(UserError, match="choose one of resnet20"):
        make(NetworkConfig("alexnet"))


def test_left_alone_is_left_alone():
    module, example, network = traced(SMALL[0])
    before = logits(module, example)
    prune(module, example, logits, network, CompressionPolicy((("blocks.0.conv1", Choice()),)))
    assert isinstance(network.space, Space)
    assert torch.equal(logits(module, example), before)
