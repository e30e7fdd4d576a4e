"""Time of an image network in onnxruntime on this machine: a table of layers that were timed.

Every shape of layer is timed alone with 8 bits, whole and with half of its inputs, of its outputs and of
both. From that follow four parts of its time: one that is always there and three that shrink with the
channels that are left. What a network is beside its layers, and what these gain by standing together, is
learned from a few whole networks that are really cut: a constant and a factor.
Legend: N networks.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from plait.compression.apply import compressed
from plait.compression.complexity import LayerTime, Products, at_levels, layer_times
from plait.compression.export_onnx import INPUT, OPSET, write_onnx
from plait.compression.graph import Forward, Network
from plait.compression.space import Floats

RUNS, WARM = 40, 10
"""Of each model that is timed: runs whose median counts, and runs before them."""
SHARES = (0.0, 0.34, 0.67, 1.0)
"""Whole networks that are timed: all genes at these shares of their ranges."""
BATCHES = 2
"""Batches of random images to set their steps with."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A layer as an engine sees it."""

    inputs: int
    outputs: int
    size: tuple[int, int]
    """Height and width of its input; of linear layers 1 and 1."""
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    depthwise: bool

    def with_channels(self, inputs: int, outputs: int) -> "Shape":
        """The same with other channels; a depthwise layer has as many inputs as outputs."""
        told = asdict(self) | {"inputs": outputs if self.depthwise else inputs, "outputs": outputs}
        return Shape(**told)


@dataclass(frozen=True, slots=True)
class Latency:
    """What an image takes, alone, on one thread."""

    layers: tuple[LayerTime, ...]
    """In the network's order."""
    constant_ns: float
    factor: float
    """Of the layers' sum."""
    worst: float
    """Largest relative error of constant and factor on what they were fitted to."""

    def cost(self, network: Network) -> Products:
        """Nanoseconds of a policy, with gradients."""
        scaled = [LayerTime(*(self.factor * part for part in each.parts)) for each in self.layers]
        return layer_times(network.space, network.layers, scaled, self.constant_ns)


def measure_latency(
    module: nn.Module, example: Tensor, forward: Forward, network: Network, scratch: Path
) -> Latency:
    """Time layers and a few whole networks.

    Args:
        module: any of the network's kind; what its weights are does not matter.
        example: one input (1, 3, H, W).
        network: its space has bits for 8-bit kernels alone.
        scratch: where a file is written.
    """
    known: dict[Shape, LayerTime] = {}
    layers = []
    for shape in _shapes(module, example, forward, network):
        if shape not in known:
            known[shape] = _timed(shape)
        layers.append(known[shape])
    bare = Latency(tuple(layers), 0.0, 1.0, 0.0).cost(network)
    top_D, took, told = network.space.count_D - 1, [], []
    batches = [torch.randn(16, *example.shape[1:]) for _ in range(BATCHES)]
    for share in SHARES:
        index_D = np.round(share * top_D).astype(np.int64)
        small = compressed(module, forward, network, network.space.decode(index_D), batches)
        write_onnx(small, forward, example, scratch)
        took.append(file_ns(scratch, example))
        told.append(float(at_levels(bare, network.space, index_D)[0]))
    return Latency(tuple(layers), *_fit(np.array(told), np.array(took)))


def file_ns(path: Path, example: Tensor) -> float:
    """Nanoseconds of one input by an ONNX file's network, on one thread."""
    return _run_ns(path.read_bytes(), example.numpy())


def _run_ns(model: bytes, images: np.ndarray) -> float:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    taken = []
    for _ in range(WARM + RUNS):
        begin = time.perf_counter_ns()
        session.run(None, {INPUT: images})
        taken.append(time.perf_counter_ns() - begin)
    return float(np.median(taken[WARM:]))


def _shapes(module: nn.Module, example: Tensor, forward: Forward, network: Network) -> Sequence[Shape]:
    """Of the network's layers, in their order."""
    names = {part: name for name, part in module.named_modules()}
    found: dict[str, Shape] = {}

    def note(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        outputs, inputs = layer.weight.shape[0], args[0].shape[1]
        if isinstance(layer, nn.Linear):
            found[names[layer]] = Shape(inputs, outputs, (1, 1), (1, 1), (1, 1), (0, 0), False)
            return
        told = (tuple(args[0].shape[2:]), layer.kernel_size, layer.stride, layer.padding)
        found[names[layer]] = Shape(inputs, outputs, *told, layer.groups > 1)

    kinds = (nn.Conv2d, nn.Linear)
    hooks = [part.register_forward_pre_hook(note) for part in module.modules() if isinstance(part, kinds)]
    with torch.no_grad():
        forward(module.eval(), example)
    for hook in hooks:
        hook.remove()
    return [found[layer.name] for layer in network.layers]


def _timed(shape: Shape) -> LayerTime:
    """Four parts that four measurements determine, none below zero."""
    half = max(1, shape.inputs // 2), max(1, shape.outputs // 2)
    sizes = [(i, o) for i in (shape.inputs, half[0]) for o in (shape.outputs, half[1])]
    took = [_run_ns(*_alone(shape.with_channels(*size))) for size in sizes]
    shares = np.array([(i / shape.inputs, o / shape.outputs) for i, o in sizes])
    if shape.depthwise:
        rows = np.stack([np.ones(4), shares[:, 1]], 1)
        fixed, output = _not_negative(rows, np.array(took))
        return LayerTime(fixed, output, 0.0, 0.0)
    rows = np.stack([np.ones(4), shares[:, 1], shares[:, 0], shares.prod(1)], 1)
    return LayerTime(*_not_negative(rows, np.array(took)))


def _fit(sum_N: Floats, took_N: Floats) -> tuple[float, float, float]:
    """Constant, factor and the worst relative error."""
    rows = np.stack([np.ones(len(sum_N)), sum_N], 1)
    constant, factor = _not_negative(rows, took_N)
    return constant, factor, float(np.abs((constant + factor * sum_N) / took_N - 1).max())


def _not_negative(rows: Floats, took_N: Floats) -> list[float]:
    """Coefficients of least relative error; what would be negative counts for nothing."""
    free, found = list(range(rows.shape[1])), np.zeros(rows.shape[1])
    while free:
        solved, *_ = np.linalg.lstsq(rows[:, free] / took_N[:, None], np.ones(len(took_N)), rcond=None)
        if (solved >= 0).all():
            found[free] = solved
            break
        free.pop(int(solved.argmin()))
    return found.tolist()


def _alone(shape: Shape) -> tuple[bytes, np.ndarray]:
    """A model of one layer of whole numbers and its ReLU, and an input."""
    rng = np.random.default_rng(0)
    groups = shape.inputs if shape.depthwise else 1
    codes = rng.integers(-127, 128, (shape.outputs, shape.inputs // groups, *shape.kernel)).astype(np.int8)
    steps = np.full(shape.outputs, 0.01, np.float32)
    stored = {
        "step": np.float32(0.02),
        "zero": np.uint8(0),
        "codes": codes,
        "steps": steps,
        "bias_codes": rng.integers(-5000, 5000, shape.outputs).astype(np.int32),
        "bias_steps": steps * np.float32(0.02),
    }
    (down, across), told = shape.padding, {"strides": shape.stride, "group": groups}
    nodes = [
        helper.make_node("QuantizeLinear", [INPUT, "step", "zero"], ["whole"]),
        helper.make_node("DequantizeLinear", ["whole", "step", "zero"], ["x"]),
        helper.make_node("DequantizeLinear", ["codes", "steps"], ["weight"], axis=0),
        helper.make_node("DequantizeLinear", ["bias_codes", "bias_steps"], ["bias"], axis=0),
        helper.make_node("Conv", ["x", "weight", "bias"], ["y"], pads=[down, across] * 2, **told),
        helper.make_node("Relu", ["y"], ["out"]),
    ]
    images = rng.random((1, shape.inputs, *shape.size), np.float32)
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in ((INPUT, images.shape),)]
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, shape.outputs, "height", "width"])
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()]
    graph = helper.make_graph(nodes, "layer", ends, [out], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString(), images
