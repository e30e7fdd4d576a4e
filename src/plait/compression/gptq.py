"""Weights as whole numbers: steps of least error, and rounding that makes up for its own errors.

`nearest` rounds each weight by itself. `compensated` is GPTQ (Frantar et al., ICLR 2023): columns are rounded
one after another, those first whose inputs are largest, and what a rounding got wrong is made up for by the
columns that are left, so that the layer's outputs on real inputs stay near. Rows do not depend on each other:
several layers of one input, and several numbers of bits, are rounded in one pass.
Codes run from -half to half - 1; a scale may be negative, where the largest weights are positive.
Legend: N outputs, I inputs, G groups, J inputs of a group.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from plait.model.quantised import QuantisedWeight
from plait.spec.schemes import Scheme

DAMP = 0.01
"""Added to the inputs' second moments, as a share of their mean."""
BLOCK = 64
"""Columns after which the columns to their right are made up for."""
CLIPS = (1.0, 0.94, 0.88, 0.82, 0.76, 0.7, 0.62, 0.54)
"""Shares of the largest weight that are tried as the range's end, at 4 bits and fewer."""
FINE_CLIPS = (1.0, 0.93, 0.86)
"""The same above 4 bits."""


@dataclass(frozen=True, slots=True)
class Rounding:
    """A layer to round, and how."""

    weight_NI: Tensor
    """float32."""
    scheme: Scheme


def scales(weight_NI: Tensor, scheme: Scheme, importance_I: Tensor) -> Tensor:
    """Scales [N, G], bf16, under which rounding errs least; squares of errors count by `importance`."""
    grouped_NGJ = weight_NI.unflatten(1, (-1, scheme.group or weight_NI.shape[1]))
    weigh_GJ = importance_I.view(grouped_NGJ.shape[1:])
    half = 2 ** (scheme.bits - 1)
    largest_NG = grouped_NGJ.abs().amax(-1).clamp_min(1e-8)
    grouped = scheme.group is not None
    best_NG, error_NG = largest_NG, torch.full_like(largest_NG, torch.inf)
    for sign in (1.0, -1.0) if grouped else (1.0,):
        for clip in CLIPS if grouped else FINE_CLIPS:
            scale_NG = (sign * clip / (half - 0.5) * largest_NG).bfloat16().float()
            errors_NGJ = (grouped_NGJ / scale_NG[..., None]).round_().clamp_(-half, half - 1)
            errors_NGJ.mul_(scale_NG[..., None]).sub_(grouped_NGJ).square_().mul_(weigh_GJ)
            found_NG = errors_NGJ.sum(-1)
            better_NG = found_NG < error_NG
            best_NG = torch.where(better_NG, scale_NG, best_NG)
            error_NG = torch.where(better_NG, found_NG, error_NG)
    return best_NG.bfloat16()


def nearest(rounding: Rounding, moments_II: Tensor) -> QuantisedWeight:
    """Each weight rounded by itself."""
    scheme = rounding.scheme
    scales_NG = scales(rounding.weight_NI, scheme, moments_II.diagonal())
    scale_NI = _spread(scales_NG, rounding.weight_NI.shape[1])
    half = 2 ** (scheme.bits - 1)
    codes_NI = (rounding.weight_NI / scale_NI).round().clamp(-half, half - 1).to(torch.int8)
    return QuantisedWeight(codes_NI, scales_NG, scheme)


def compensated(roundings: list[Rounding], moments_II: Tensor) -> list[QuantisedWeight]:
    """Layers of one input, rounded so that their outputs on inputs of these second moments stay near."""
    importance_I = moments_II.diagonal()
    found = [scales(each.weight_NI, each.scheme, importance_I) for each in roundings]
    inputs = len(moments_II)
    half_N = torch.cat([torch.full((len(r.weight_NI),), 2.0 ** (r.scheme.bits - 1)) for r in roundings])
    codes_NI = _codes(
        torch.cat([each.weight_NI for each in roundings]),
        torch.cat([_spread(scales_NG, inputs) for scales_NG in found]),
        half_N,
        moments_II,
    )
    parts = codes_NI.split([len(each.weight_NI) for each in roundings])
    return [
        QuantisedWeight(codes.contiguous(), scales_NG, each.scheme)
        for codes, scales_NG, each in zip(parts, found, roundings, strict=True)
    ]


def _codes(weight_NI: Tensor, scale_NI: Tensor, half_N: Tensor, moments_II: Tensor) -> Tensor:
    """Whole numbers, int8, in the order of the inputs."""
    order_I = moments_II.diagonal().argsort(descending=True)
    ready_II = moments_II[order_I][:, order_I] + DAMP * moments_II.diagonal().mean() * torch.eye(len(order_I))
    inverse_II = torch.cholesky_inverse(torch.linalg.cholesky(ready_II))
    upper_II = torch.linalg.cholesky(inverse_II, upper=True)
    left_IN, scale_IN = weight_NI.T[order_I].clone(), scale_NI.T[order_I].contiguous()
    codes_IN = torch.empty_like(left_IN, dtype=torch.int8)
    low_N, high_N = -half_N, half_N - 1
    for first in range(0, len(order_I), BLOCK):
        part_JN, past = left_IN[first : first + BLOCK], min(first + BLOCK, len(order_I))
        errors_JN = torch.empty_like(part_JN)
        for j in range(past - first):
            at = first + j
            code_N = (part_JN[j] / scale_IN[at]).round_().clamp_(low_N, high_N)
            codes_IN[at] = code_N
            errors_JN[j] = (part_JN[j] - code_N * scale_IN[at]) / upper_II[at, at]
            part_JN[j + 1 :].addr_(upper_II[at, at + 1 : past], errors_JN[j], alpha=-1)
        left_IN[past:].addmm_(upper_II[first:past, past:].T, errors_JN, alpha=-1)
    codes_NI = torch.empty(weight_NI.shape, dtype=torch.int8)
    codes_NI[:, order_I] = codes_IN.T
    return codes_NI


def _spread(scales_NG: Tensor, inputs: int) -> Tensor:
    return scales_NG.float().repeat_interleave(inputs // scales_NG.shape[1], 1)
