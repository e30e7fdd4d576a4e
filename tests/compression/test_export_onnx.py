"""Networks in ONNX files answer in onnxruntime what they answer here."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from plait.compression.apply import compressed
from plait.compression.export_onnx import INPUT, OUTPUT, write_onnx
from plait.compression.graph import CutConfig, Forward, trace
from plait.compression.quantisers import in_floats
from plait.compression.tasks.detection import HEADS, called
from plait.compression.tasks.detector import Detector, DetectorConfig
from plait.compression.tasks.networks import NetworkConfig, logits, make
from plait.spec.errors import Unsupported

BITS = (2.0, 3.0, 4.0, 6.0)


def spread(module: nn.Module) -> nn.Module:
    """Random norms, some of which turn the sign, and weights at which answers differ."""
    torch.manual_seed(0)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.weight.uniform_(0.5, 1.5).mul_(torch.where(torch.rand_like(part.weight) < 0.3, -1, 1))
                part.bias.normal_(0.3, 0.3)
            elif isinstance(part, nn.Conv2d | nn.Linear):
                part.weight.normal_(0, 1.5 / part.weight[0].numel() ** 0.5)
    return module.eval()


def made(module: nn.Module, forward: Forward, cut: CutConfig, pixels: int, seed: int) -> nn.Module:
    """A compressed network by a random policy."""
    batch = torch.randn(48, 3, pixels, pixels, generator=torch.Generator().manual_seed(1))
    network = trace(module, batch[:1], forward, cut)
    index_D = network.space.sample(np.random.default_rng(seed), 1)[0]
    return compressed(module, forward, network, network.space.decode(index_D), [batch]).eval()


def answers(path, images: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


def gap(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


NETWORKS = {
    "resnet20": (NetworkConfig("resnet20", pixels=16, width=0.5), logits),
    "resnet18": (NetworkConfig("resnet18", pixels=32, width=0.125), logits),
    "mobilenetv2": (NetworkConfig("mobilenetv2", pixels=16, width=0.35), logits),
    "vgg-small": (NetworkConfig("vgg-small", pixels=16, width=0.0625), logits),
    "detector": (DetectorConfig(classes=2, pixels=64, width=8, blocks=(1, 1, 1)), called),
    "detector-mobilenetv2": (DetectorConfig(classes=2, pixels=64, width=8, backbone="mobilenetv2"), called),
}
FEW = ("resnet20", "resnet18", "vgg-small", "detector")
SOME_SLOW = [name if name in FEW else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS]
"""Depthwise networks take the exporter half a minute."""


def check(name: str, bits: tuple[float, ...], fixed: float, path) -> tuple[float, float]:
    """How far the file's answers are from what was measured, and what was measured from answers in floats."""
    config, forward = NETWORKS[name]
    classifier = isinstance(config, NetworkConfig)
    module = spread(make(config) if classifier else Detector(config))
    cut = CutConfig(bits=bits, fixed_bits=fixed, multiple=4, answers=() if classifier else HEADS)
    small = made(module, forward, cut, config.pixels, 3)
    images = torch.randn(20, 3, config.pixels, config.pixels, generator=torch.Generator().manual_seed(2))
    assert write_onnx(small, forward, images[:1], path) == path.stat().st_size
    with torch.no_grad():
        expected = forward(small, images)
        return gap(answers(path, images), expected), gap(expected, forward(in_floats(small), images))


@pytest.mark.parametrize("name", SOME_SLOW)
def test_files_of_few_bits_answer_exactly_what_was_measured(name, tmp_path):
    off, own = check(name, BITS, 16.0, tmp_path / "small.onnx")
    assert own > 0.05
    assert off < 1e-4


@pytest.mark.parametrize("name", SOME_SLOW)
def test_files_of_eight_bits_err_no_more_than_eight_bits_do(name, tmp_path):
    """Engines compute these with integers: a value may fall to the next step, and random networks pass it
    on."""
    off, own = check(name, (8.0,), 8.0, tmp_path / "small.onnx")
    assert off < 1.5 * own < 0.3


def test_weights_of_four_bits_take_four(tmp_path):
    module = spread(make(NetworkConfig("resnet20", pixels=16)))
    sizes = {}
    for bits in (4.0, 8.0):
        small = made(module, logits, CutConfig(bits=(bits,), ratios=(0.0,)), 16, 0)
        sizes[bits] = write_onnx(small, logits, torch.zeros(1, 3, 16, 16), tmp_path / f"{bits}.onnx")
    weights = sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Conv2d))
    assert sizes[8.0] - sizes[4.0] == pytest.approx(weights / 2, rel=0.05)
    model = onnx.load(tmp_path / "8.0.onnx")
    kinds = Counter(node.op_type for node in model.graph.node)
    # Two shortcuts read what the layer beside them reads, on the same grid.
    assert kinds["QuantizeLinear"] + 2 == kinds["Conv"] + kinds["Gemm"] == 22
    assert kinds["DequantizeLinear"] == 20 + 2 * 22
    assert "BatchNormalization" not in kinds
    assert b"/" not in b"".join(node.SerializeToString() for node in model.graph.node), "no path of a machine"


def test_a_network_that_is_not_quantised_is_refused(tmp_path):
    module = make(NetworkConfig("resnet20", pixels=16))
    with pytest.raises(Unsupported, match="compress it first"):
        write_onnx(module, logits, torch.zeros(1, 3, 16, 16), tmp_path / "none.onnx")


def test_float_weights_with_quantised_inputs_are_refused(tmp_path):
    small = made(make(NetworkConfig("resnet20", pixels=16)).eval(), logits, CutConfig(bits=(4.0,)), 16, 0)
    small.blocks[0].conv1.weight_step = None
    with pytest.raises(Unsupported, match="engines would round them"):
        write_onnx(small, logits, torch.zeros(1, 3, 16, 16), tmp_path / "none.onnx")
