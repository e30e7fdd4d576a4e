"""Uniform quantisers for convolution and linear layers: on a grid while training, whole numbers when written.

Weights are symmetric with a step for each output channel. Activations have one step, and are unsigned where
the calibration saw nothing negative. Steps come from the clip ratio of least error and are learned when
fine-tuning (LSQ, Esser et al., ICLR 2020). Two bits are the three levels -1, 0 and 1.
Legend: O output channels, I inputs of one of them, B images.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from plait.compression.graph import Network
from plait.spec.policy import CompressionPolicy

FLOAT_BITS = 16.0
"""At so many bits and more nothing is quantised."""
RATIOS = torch.linspace(0.2, 1.0, 81)
"""Clip ratios that are tried for a step."""


@dataclass(frozen=True, slots=True)
class Levels:
    """Lowest and highest whole number of a quantiser."""

    low: int
    high: int


def symmetric(bits: float) -> Levels:
    """Of weights and signed activations: as many below zero as above."""
    high = 2 ** (int(bits) - 1) - 1
    return Levels(-high, high)


def unsigned(bits: float) -> Levels:
    """Of activations after a ReLU."""
    return Levels(0, 2 ** int(bits) - 1)


def rounded(x: Tensor) -> Tensor:
    """The nearest whole numbers, with the gradient of x."""
    return x + (x.round() - x).detach()


def fake(x: Tensor, step: Tensor, levels: Levels) -> Tensor:
    """x on the quantiser's grid. Inside its range the gradient is that of x, outside it is none; the step's
    gradient follows from the same expression, scaled as in LSQ."""
    scale = (x.numel() / step.numel() * levels.high) ** -0.5
    calm = (step * scale + (step * (1 - scale)).detach()).clamp_min(1e-8)  # a learned step stays positive
    return rounded((x / calm).clamp(levels.low, levels.high)) * calm


def best_step(rows_OI: Tensor, levels: Levels) -> Tensor:
    """For each row the step (O) under which rounding errs least, of 81 clip ratios."""
    largest_O = rows_OI.abs().amax(1).clamp_min(1e-8)
    best_O, error_O = largest_O / levels.high, torch.full_like(largest_O, torch.inf)
    for ratio in RATIOS.tolist():
        step_O = ratio * largest_O / levels.high
        on_grid = (rows_OI / step_O[:, None]).round_().clamp_(levels.low, levels.high).mul_(step_O[:, None])
        found_O = on_grid.sub_(rows_OI).square_().mean(1)
        better_O = found_O < error_O
        best_O, error_O = torch.where(better_O, step_O, best_O), torch.where(better_O, found_O, error_O)
    return best_O


class QuantLayer(nn.Module):
    """A convolution or linear layer whose weight and input lie on grids."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, weight_bits: float, act_bits: float) -> None:
        super().__init__()
        self.layer, self.weight_bits, self.act_bits = layer, weight_bits, act_bits
        self.weight_step, self.act_step = None, None
        self.act_levels = unsigned(act_bits)
        if weight_bits < FLOAT_BITS:
            step_O = best_step(layer.weight.detach().flatten(1), symmetric(weight_bits))
            self.weight_step = nn.Parameter(step_O.view(-1, *[1] * (layer.weight.dim() - 1)))

    def calibrate(self, x: Tensor) -> None:
        """Set the activations' step from one batch of inputs."""
        if self.act_bits < FLOAT_BITS:
            self.act_levels = symmetric(self.act_bits) if bool((x < 0).any()) else unsigned(self.act_bits)
            sample = x.detach().flatten()[:: max(1, x.numel() // 50_000)]
            self.act_step = nn.Parameter(best_step(sample[None], self.act_levels))

    def forward(self, x: Tensor) -> Tensor:
        """As the layer would, on the grids. The first batch it sees sets the activations' step."""
        if self.act_step is None:
            self.calibrate(x)
        if self.act_step is not None:
            x = fake(x, self.act_step, self.act_levels)
        return self._apply_to(x, self.weight())

    def weight(self) -> Tensor:
        """The weight on its grid."""
        if self.weight_step is None:
            return self.layer.weight
        return fake(self.layer.weight, self.weight_step, symmetric(self.weight_bits))

    @torch.no_grad()
    def codes(self) -> Tensor:
        """The weight as whole numbers, int8."""
        assert self.weight_step is not None, "a float weight has no codes"
        levels = symmetric(self.weight_bits)
        return (self.layer.weight / self.weight_step).round().clamp(levels.low, levels.high).to(torch.int8)

    @torch.no_grad()
    def integer_forward(self, x: Tensor) -> Tensor:
        """The same with whole numbers only between both steps, as an integer kernel computes it."""
        assert self.act_step is not None, "float activations are not whole numbers"
        levels = self.act_levels
        codes = (x / self.act_step).round().clamp(levels.low, levels.high)
        # Sums of products stay far below 2^53, so doubles hold the whole numbers exactly.
        total = self._apply_to(codes.double(), self.codes().double(), bias=False)
        step = (self.weight_step.double() * self.act_step.double()).view(1, -1, *[1] * (total.dim() - 2))
        bias = self.layer.bias
        out = total * step
        return out.to(x.dtype) if bias is None else (out + bias.view(step.shape)).to(x.dtype)

    def _apply_to(self, x: Tensor, weight: Tensor, bias: bool = True) -> Tensor:
        layer = self.layer
        added = layer.bias if bias else None
        if isinstance(layer, nn.Linear):
            return nn.functional.linear(x, weight, added)
        return nn.functional.conv2d(
            x, weight, added, layer.stride, layer.padding, layer.dilation, layer.groups
        )


def quantise(module: nn.Module, network: Network, policy: CompressionPolicy) -> None:
    """Replace the layers of `module` by quantised ones, in place; the first batch sets activations' steps."""
    for layer in network.layers:
        chosen = policy.choice(layer.unit) if layer.unit else None
        bits = [chosen.weight_bits, chosen.act_bits] if chosen else [layer.fixed_bits] * 2
        weight_bits, act_bits = (FLOAT_BITS if b is None else b for b in bits)
        parent_name, _, own = layer.name.rpartition(".")
        parent = module.get_submodule(parent_name)
        setattr(parent, own, QuantLayer(getattr(parent, own), weight_bits, act_bits))


def in_floats(module: nn.Module) -> nn.Module:
    """The same network, its layers without their grids again, in place: of channels cut, all that is left."""
    for name, part in list(module.named_modules()):
        if isinstance(part, QuantLayer):
            parent, _, own = name.rpartition(".")
            setattr(module.get_submodule(parent), own, part.layer)
    return module


@torch.no_grad()
def reestimate(module: nn.Module, batches: list[Tensor]) -> None:
    """Means and variances of all batch norms anew, from these batches."""
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average over batches
    training = module.training
    module.train()
    for batch in batches:
        module(batch)
    module.train(training)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
