"""Quantisers: grids, steps of least error, gradients of steps, whole-number arithmetic, packing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from plait.compression.graph import CutConfig, trace
from plait.compression.quantisers import (
    QuantLayer,
    best_step,
    fake,
    quantise,
    reestimate,
    symmetric,
    unsigned,
)
from plait.compression.stored import pack, save, unpack
from plait.compression.tasks.networks import NetworkConfig, logits, make


@settings(deadline=None)
@given(st.integers(2, 8), st.integers(0, 2**31))
def test_values_lie_on_the_grid_and_within_half_a_step(bits: int, seed: int):
    x = torch.randn(200, generator=torch.Generator().manual_seed(seed))
    for levels in (symmetric(bits), unsigned(bits)):
        step = best_step(x[None], levels)
        codes = fake(x, step, levels) / step
        torch.testing.assert_close(codes, codes.round(), atol=1e-3, rtol=0)
        inside = (x / step > levels.low) & (x / step < levels.high)
        assert ((codes * step - x).abs()[inside] <= step * 0.5001).all()


@settings(deadline=None)
@given(st.integers(2, 8), st.integers(0, 2**31))
def test_steps_err_no_more_than_the_largest_value_would_say(bits: int, seed: int):
    rows = torch.randn(4, 300, generator=torch.Generator().manual_seed(seed))
    levels = symmetric(bits)
    plain = rows.abs().amax(1) / levels.high
    best = best_step(rows, levels)

    def error(step: torch.Tensor) -> torch.Tensor:
        on_grid = (rows / step[:, None]).round().clamp(levels.low, levels.high) * step[:, None]
        return (on_grid - rows).square().mean(1)

    assert (error(best) <= error(plain) + 1e-9).all()


def test_the_gradient_of_a_step_is_that_of_lsq():
    x = torch.tensor([-5.0, -0.3, 0.2, 0.9, 7.0], requires_grad=True)
    step = torch.tensor(0.5, requires_grad=True)
    levels = symmetric(3)
    fake(x, step, levels).sum().backward()
    scale = (5 * levels.high) ** -0.5
    inside = [(v / 0.5).round() - v / 0.5 for v in x.detach()[1:4]]
    expected = (levels.low + levels.high + sum(inside)) * scale
    assert step.grad == pytest.approx(float(expected), rel=1e-5)
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(8, 6, 3, 2, 1, bias=False), nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.Linear(8, 5)]
)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_whole_numbers_give_what_training_saw(layer: nn.Module, bits: int):
    torch.manual_seed(bits)
    quantised = QuantLayer(layer, bits, bits)
    for x in (torch.randn(100, 8, 6, 6), torch.rand(100, 8, 6, 6)):
        x = x.mean((2, 3)) if isinstance(layer, nn.Linear) else x
        quantised.calibrate(x)
        expected = quantised(x)
        torch.testing.assert_close(quantised.integer_forward(x), expected, atol=1e-5, rtol=1e-4)


@settings(deadline=None)
@given(st.integers(2, 8), st.integers(1, 40), st.integers(0, 2**31))
def test_packing_loses_nothing(bits: int, count: int, seed: int):
    half = 2 ** (bits - 1)
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-half, half, (count, 3), generator=generator).to(torch.int8)
    packed = pack(codes, bits)
    assert len(packed) == -(-codes.numel() * bits // 8)
    assert torch.equal(unpack(packed, bits, codes.shape), codes)


def test_a_network_of_eight_bits_answers_almost_the_same(tmp_path):
    torch.manual_seed(0)
    config = NetworkConfig("resnet20", pixels=16)
    module = make(config)
    network = trace(module, torch.zeros(1, 3, 16, 16), logits, CutConfig(bits=(3.0, 8.0)))
    batch = torch.randn(64, 3, 16, 16)
    reestimate(module, [batch])
    expected = module.eval()(batch)
    error = {}
    for level in (0, 1):
        quantised = make(config)
        quantised.load_state_dict(module.state_dict())
        index_D = network.space.count_D * 0 + (network.space.count_D - 1)
        index_D[[gene.knob != "prune" for gene in network.space.genes]] = level
        quantise(quantised, network, network.space.decode(index_D))
        error[level] = float((quantised.eval()(batch) - expected).detach().norm() / expected.detach().norm())
    assert error[1] < 0.05 < error[0]
    size = save(quantised, tmp_path / "net.safetensors")
    weights = sum(layer.weights for layer in network.layers)
    assert weights < size < 1.35 * weights
    stored = load_file(tmp_path / "net.safetensors")
    layer = quantised.blocks[0].conv1
    codes = unpack(stored["blocks.0.conv1.layer.weight_packed"], 8, layer.layer.weight.shape)
    assert torch.equal(codes, layer.codes())


def test_norms_are_estimated_anew():
    module = nn.Sequential(nn.BatchNorm2d(2))
    batches = list((3 + 2 * torch.randn(256, 2, 4, 4)).split(64))
    reestimate(module, batches)
    assert module[0].momentum == 0.1
    torch.testing.assert_close(
        module[0].running_mean, torch.cat(batches).mean((0, 2, 3)), atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(module[0].running_var, torch.full((2,), 4.0), atol=0.2, rtol=0.1)
