"""Compressed image networks as ONNX files, for onnxruntime and others.

What is quantised stands between QuantizeLinear and DequantizeLinear: weights are whole numbers with a step
for each output channel, of 4 bits where they fit and else of 8, and inputs are put on their grid on the way.
Batch norms are folded into the layers before them, which changes steps and biases and no whole number, so
that an engine can compute such a layer with integers alone.
Legend: O output channels, B images.
"""

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.onnx.ops import symbolic

from plait.compression.graph import Forward
from plait.compression.quantisers import QuantLayer
from plait.spec.errors import Unsupported

OPSET = 21
"""The first with whole numbers of 4 bits."""
INPUT, OUTPUT = "images", "answers"
"""Names in the file: (B, 3, H, W) as the network was trained with, and what it answers."""
WIDE = 2.0**30
"""Steps that a bias is at most: it is a whole number of 32 bits."""


def write_onnx(module: nn.Module, forward: Forward, example: Tensor, path: Path) -> int:
    """Write a compressed network; returns the file's bytes.

    Args:
        module: of `QuantLayer`s whose steps are set; it is left as it is.
        forward: how it is called.
        example: one input (1, 3, H, W).

    Raises:
        Unsupported: the network has no quantised layer, or one whose weights alone are floats.
    """
    with _quiet():
        program = torch.onnx.export(
            _Called(written(module, forward, example), forward).eval(),
            (example.repeat(2, 1, 1, 1),),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _narrow(model)
    _bare(model)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path.stat().st_size


def written(module: nn.Module, forward: Forward, example: Tensor) -> nn.Module:
    """A copy with norms folded and layers as an ONNX file has them; only `torch.onnx` can run it."""
    module = copy.deepcopy(module).eval()
    norm_of = _norms(module, forward, example)
    if not norm_of:
        raise Unsupported("the network has no quantised layer: compress it first", "model")
    folded = set(norm_of.values())
    for name, part in list(module.named_modules()):
        if part in norm_of:
            _replace(module, name, _Layer(part, norm_of[part]))
        elif part in folded:
            _replace(module, name, nn.Identity())
    return module


class _Called(nn.Module):
    """The network with its answers alone."""

    def __init__(self, module: nn.Module, forward: Forward) -> None:
        super().__init__()
        self.module, self.call = module, forward

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.call(self.module, images_BCHW)


class _Layer(nn.Module):
    """A quantised layer with its norm, as ONNX's operators.

    A bias inside a layer of whole numbers is one itself, a multiple of the product of both steps. Of 8 bits
    that is fine enough, and engines then compute the layer with integers; of fewer bits it is not: there the
    bias is added behind, in floats.
    """

    def __init__(self, quantised: QuantLayer, norm: nn.BatchNorm2d | None) -> None:
        super().__init__()
        self.layer, self.levels = quantised.layer, quantised.act_levels
        gain_O, bias_O = _folded(quantised.layer, norm)
        ones = (1,) * (quantised.layer.weight.dim() - 1)
        codes, step_O, bias_step_O = None, None, None
        act_step = None if quantised.act_step is None else quantised.act_step.detach().reshape(())
        if quantised.weight_step is None and act_step is not None:
            raise Unsupported(
                "weights in floats with inputs of whole numbers: engines would round them as they like, so "
                "give both fewer than 16 bits or neither",
                "policy",
            )
        if quantised.weight_step is None:
            self.weight = quantised.layer.weight.detach() * gain_O.view(-1, *ones)
        else:
            # A step is positive: where the norm turns the sign, whole numbers do. They are as many below
            # zero as above, so none is lost.
            codes = quantised.codes() * gain_O.sign().to(torch.int8).view(-1, *ones)
            step_O = quantised.weight_step.detach().flatten() * gain_O.abs()
        if bias_O is not None and quantised.weight_bits == quantised.act_bits == 8:
            codes, step_O = _coarse(codes, step_O, bias_O.abs() / act_step / WIDE)
            bias_step_O = step_O * act_step
            bias_O = (bias_O / bias_step_O).round().to(torch.int32)
        elif bias_O is not None and isinstance(quantised.layer, nn.Conv2d):
            bias_O = bias_O.view(-1, 1, 1)
        kind = torch.uint8 if self.levels.low == 0 else torch.int8
        for name, told in {
            "codes": codes,
            "step_O": step_O,
            "act_step": act_step,
            "zero": None if act_step is None else torch.zeros((), dtype=kind),
            "bias": bias_O,
            "bias_step_O": bias_step_O,
        }.items():
            self.register_buffer(name, told)

    def forward(self, x: Tensor) -> Tensor:
        x, layer = self._on_grid(x), self.layer
        weight = self.weight if self.codes is None else _read(self.codes, self.step_O)
        inside = None if self.bias_step_O is None else _read(self.bias, self.bias_step_O)
        if isinstance(layer, nn.Linear):
            out = nn.functional.linear(x, weight, inside)
        else:
            told = (layer.stride, layer.padding, layer.dilation, layer.groups)
            out = nn.functional.conv2d(x, weight, inside, *told)
        return out if self.bias is None or inside is not None else out + self.bias

    def _on_grid(self, x: Tensor) -> Tensor:
        if self.act_step is None:
            return x
        info, levels = torch.iinfo(self.zero.dtype), self.levels
        if (levels.low, levels.high) != (info.min, info.max):
            step = self.act_step.item()
            x = x.clamp(levels.low * step, levels.high * step)
        parts = (self.act_step, self.zero)
        codes = symbolic("QuantizeLinear", (x, *parts), dtype=self.zero.dtype, shape=x.shape)
        return symbolic("DequantizeLinear", (codes, *parts), dtype=x.dtype, shape=x.shape)


def _read(codes: Tensor, step_O: Tensor) -> Tensor:
    """Whole numbers times their steps."""
    return symbolic("DequantizeLinear", (codes, step_O), {"axis": 0}, dtype=step_O.dtype, shape=codes.shape)


def _coarse(codes: Tensor, step_O: Tensor, least_O: Tensor) -> tuple[Tensor, Tensor]:
    """The same weights with steps that are no smaller, so that biases fit 32 bits: a norm may scale a channel
    to next to nothing beside its bias."""
    wide_O = torch.maximum(step_O, least_O).clamp_min(torch.finfo(torch.float32).tiny)
    share_O = (step_O / wide_O).view(-1, *[1] * (codes.dim() - 1))
    return (codes * share_O).round().to(torch.int8), wide_O


def _norms(module: nn.Module, forward: Forward, example: Tensor) -> dict[nn.Module, nn.BatchNorm2d | None]:
    """Quantised layers, each with the norm that reads it or None."""
    found: dict[nn.Module, nn.BatchNorm2d | None] = {}
    made: dict[int, tuple[nn.Module, Tensor]] = {}

    def note(part: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        found[part], made[id(out)] = None, (part, out)  # kept, so that no other tensor gets its id

    def pair(part: nn.Module, args: tuple[Tensor, ...]) -> None:
        if id(args[0]) in made:
            found[made[id(args[0])][0]] = part

    hooks = [m.register_forward_hook(note) for m in module.modules() if isinstance(m, QuantLayer)]
    hooks += [m.register_forward_pre_hook(pair) for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        forward(module, example)
    for hook in hooks:
        hook.remove()
    return found


def _folded(layer: nn.Module, norm: nn.BatchNorm2d | None) -> tuple[Tensor, Tensor | None]:
    """What the norm multiplies the layer's outputs by (O), and the bias of both together."""
    bias_O = None if layer.bias is None else layer.bias.detach()
    if norm is None:
        return torch.ones(layer.weight.shape[0]), bias_O
    gain_O = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach()
    shift_O = (0 if bias_O is None else bias_O) - norm.running_mean
    return gain_O, (norm.bias + shift_O * gain_O).detach()


def _narrow(model: onnx.ModelProto) -> None:
    """Weights whose whole numbers all fit 4 bits are stored so."""
    weights = {node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    for stored in model.graph.initializer:
        if stored.name not in weights or stored.data_type != onnx.TensorProto.INT8:
            continue
        codes = onnx.numpy_helper.to_array(stored)
        if abs(codes.astype(np.int16)).max() > 7:
            continue
        nibbles = np.pad(codes.ravel() & np.int8(15), (0, codes.size % 2)).astype(np.uint8).reshape(-1, 2)
        packed = (nibbles[:, 0] | nibbles[:, 1] << 4).tobytes()
        stored.CopyFrom(
            onnx.helper.make_tensor(stored.name, onnx.TensorProto.INT4, codes.shape, packed, raw=True)
        )
    names = {stored.name for stored in model.graph.initializer}
    kept = [each for each in model.graph.value_info if each.name not in names]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)


def _bare(model: onnx.ModelProto) -> None:
    """Without what the exporter notes of its own: where in which file each node comes from, times over."""
    for each in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        del each.metadata_props[:]
    for each in (*model.graph.input, *model.graph.output):
        del each.metadata_props[:]


def _replace(module: nn.Module, name: str, part: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(module.get_submodule(parent), own, part)


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's own notices, about its insides, are not the caller's."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
