"""The table of layers' times: its parts add up, its cost is of the network that is left."""

import numpy as np
import pytest
import torch

from plait.compression.complexity import LayerTime, at_levels
from plait.compression.graph import CutConfig, trace
from plait.compression.latency import Latency, _fit, _not_negative, measure_latency
from plait.compression.tasks.networks import NetworkConfig, logits, make

EIGHT = CutConfig(bits=(8.0,), multiple=4)


def test_a_cost_counts_what_is_left_of_each_layer():
    module, example = make(NetworkConfig("mobilenetv2", pixels=16, width=0.35)), torch.zeros(1, 3, 16, 16)
    network = trace(module, example, logits, EIGHT)
    layers = tuple(LayerTime(1.0, 2.0, 0.0 if x.depthwise else 4.0, 8.0) for x in network.layers)
    cost = Latency(layers, constant_ns=1000.0, factor=0.5, worst=0.0).cost(network)
    index_BD = network.space.sample(np.random.default_rng(0), 20)
    for index_D, found in zip(index_BD, at_levels(cost, network.space, index_BD), strict=True):
        policy, expected = network.space.decode(index_D), 1000.0
        for x, took in zip(network.layers, layers, strict=True):
            out = 1 - (policy.choice(x.cut_by).prune or 0) if x.cut_by else 1
            into = 1 - (policy.choice(x.fed_by).prune or 0) if x.fed_by else 1
            both = out if x.depthwise else out * into
            expected += 0.5 * (took.fixed + took.output * out + took.input * into + took.both * both)
        assert found == pytest.approx(expected)
    _, gradient_BD = cost(np.random.default_rng(1).uniform(0, 1, (20, len(network.space))))
    assert (gradient_BD >= 0).all()


def test_constants_are_found_and_none_is_negative():
    sums = np.array([10.0, 20, 30, 40])
    assert _fit(sums, 5 + 2 * sums) == pytest.approx((5, 2, 0), abs=1e-9)
    constant, factor, worst = _fit(sums, 2 * sums - 5)
    assert constant == 0
    assert factor > 0
    assert 0 < worst < 0.3
    assert _not_negative(np.array([[1.0, 1], [1, 0.5]]), np.array([3.0, 2])) == pytest.approx([1, 2])


@pytest.mark.slow
def test_layers_are_timed_on_this_machine(tmp_path):
    module, example = make(NetworkConfig("resnet20", pixels=16)), torch.zeros(1, 3, 16, 16)
    network = trace(module, example, logits, EIGHT)
    found = measure_latency(module, example, logits, network, tmp_path / "timed.onnx")
    assert len(found.layers) == len(network.layers)
    assert found.factor > 0
    assert all(sum(each.parts) > 0 and min(each.parts) >= 0 for each in found.layers)
    first, again = (found.layers[n] for n in (1, 2))
    assert first == again, "equal shapes are timed once"
    ends = np.stack([0 * network.space.count_D, network.space.count_D - 1])
    low, high = at_levels(found.cost(network), network.space, ends)
    assert 0 < low < high
