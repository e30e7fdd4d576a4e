"""Linear layers on packed bf16, int8 and int4 weights: the native bodies, same signatures as in
`linear_reference`.

Every format is 32-bit words of neighbouring inputs, which `_panels` stands side by side for 32 outputs;
native/linear.h describes the words.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from plait.kernels.choice import choose

_CHOICE = choose()
assert _CHOICE.native is not None, "import this only where native kernels are in use"
_NATIVE, _ISA, _PANEL = _CHOICE.native, _CHOICE.isa, _CHOICE.native.panel
_HALF = _PANEL // 2
_ONE_GROUP = 1 << 40
"""A group that is longer than any row."""


def pack_bf16(weights_NI: list[Tensor]) -> Tensor:
    """Stack bf16 weights as panels of words [P, words, 32]."""
    assert all(weight.dtype == torch.bfloat16 for weight in weights_NI), "only bf16 weights"
    return _panels([_filled(weight, 2).view(torch.int32) for weight in weights_NI])


def pack_gated(gate_NI: Tensor, up_NI: Tensor) -> Tensor:
    """The bf16 weights of a gated layer as panels of 16 gates and their 16 values, zeros at the end."""
    assert gate_NI.shape == up_NI.shape, "gate and up of one shape"
    assert gate_NI.dtype == up_NI.dtype == torch.bfloat16, "only bf16 weights"
    outputs, inputs = gate_NI.shape
    pairs = gate_NI.new_zeros(2, -(-outputs // _HALF) * _HALF, inputs)
    pairs[0, :outputs], pairs[1, :outputs] = gate_NI, up_NI
    return pack_bf16([pairs.unflatten(1, (-1, _HALF)).transpose(0, 1).reshape(-1, inputs)])


def pack_int8(codes_NI: list[Tensor]) -> Tensor:
    """Stack int8 weights as panels of words [P, words, 32]."""
    assert all(codes.dtype == torch.int8 for codes in codes_NI), "only int8 codes"
    return _panels([(_filled(codes, 4) ^ -128).view(torch.int32) for codes in codes_NI])


def pack_int4(codes_NI: list[Tensor]) -> Tensor:
    """Stack int4 weights (int8 tensors of -8 to 7) as panels of words [P, words, 32]."""
    assert all(codes.dtype == torch.int8 for codes in codes_NI), "codes come as int8"
    words = []
    for codes in codes_NI:
        halves = (_filled(codes, 8) + 8).view(len(codes), -1, 2, 4)
        words.append((halves[:, :, 0] | halves[:, :, 1] << 4).contiguous().view(torch.int32).flatten(1))
    return _panels(words)


def pack_scales(scales_NG: Tensor) -> Tensor:
    """Scales [N, groups], bf16 or float32, as panels [P, groups, 32]."""
    assert scales_NG.dtype in (torch.float32, torch.bfloat16), f"scales are {scales_NG.dtype}"
    outputs, groups = scales_NG.shape
    filled = scales_NG.new_zeros(-(-outputs // _PANEL) * _PANEL, groups)
    filled[:outputs] = scales_NG
    return filled.view(-1, _PANEL, groups).transpose(1, 2).contiguous()


def linear_bf16(
    x_TI: Tensor, packed: Tensor, bias_N: Tensor | None, outputs: int, wide: bool, threads: int
) -> Tensor:
    """`x @ weight.T + bias`; see `linear_reference.linear_bf16`."""
    return _linear("bf16", x_TI, packed, None, bias_N, outputs, _ONE_GROUP, wide, threads)


def gated_bf16(x_TI: Tensor, packed: Tensor, width: int, threads: int) -> Tensor:
    """`silu(x @ gate.T) * (x @ up.T)`; see `linear_reference.gated_bf16`."""
    outputs = packed.shape[0] * _PANEL
    if _ISA == "AVX-512-bf16":
        return _linear("bf16", x_TI, packed, None, None, outputs, _ONE_GROUP, False, threads, gated=width)
    gate_TN, up_TN = gated_halves(x_TI, packed, width, threads).bfloat16().unbind(1)
    return F.silu(gate_TN) * up_TN


def gated_halves(x_TI: Tensor, packed: Tensor, width: int, threads: int) -> Tensor:
    """`x @ gate.T` and `x @ up.T`; see `linear_reference.gated_halves`."""
    outputs = packed.shape[0] * _PANEL
    both_TN = _linear("bf16", x_TI, packed, None, None, outputs, _ONE_GROUP, True, threads)
    return both_TN.unflatten(1, (-1, 2, _HALF)).transpose(1, 2).flatten(2)[..., :width]


def linear_int8(
    x_TI: Tensor,
    packed: Tensor,
    scales: Tensor,
    bias_N: Tensor | None,
    outputs: int,
    wide: bool,
    threads: int,
) -> Tensor:
    """`x @ (codes * scale).T + bias`; see `linear_reference.linear_int8`."""
    assert scales.shape[1] == 1, "int8 weights have one scale an output"
    return _linear("int8", x_TI, packed, scales, bias_N, outputs, _ONE_GROUP, wide, threads)


def linear_int4(
    x_TI: Tensor,
    packed: Tensor,
    scales: Tensor,
    bias_N: Tensor | None,
    outputs: int,
    group: int,
    wide: bool,
    threads: int,
) -> Tensor:
    """`x @ (codes * scale of their group).T + bias`; see `linear_reference.linear_int4`."""
    assert group in (32, 64, 128), f"groups of {group}; there are 32, 64 and 128"
    assert scales.shape[1] == -(-x_TI.shape[1] // group), "scales do not fit the groups"
    return _linear("int4", x_TI, packed, scales, bias_N, outputs, group, wide, threads)


def _linear(  # noqa: PLR0913 - an op has a flat signature
    form: str,
    x_TI: Tensor,
    packed: Tensor,
    scales: Tensor | None,
    bias_N: Tensor | None,
    outputs: int,
    group: int,
    wide: bool,
    threads: int,
    gated: int = 0,
) -> Tensor:
    tokens, inputs = x_TI.shape
    per_word = {"bf16": 2, "int8": 4, "int4": 8}[form]
    assert x_TI.dtype == torch.bfloat16, f"activations are {x_TI.dtype}, not bf16"
    assert packed.shape[1] == -(-inputs // per_word), "inputs are not those that were packed"
    assert packed.shape[0] == -(-outputs // _PANEL), "outputs are not those that were packed"
    assert bias_N is None or bias_N.dtype == torch.float32, "a bias is float32"
    if x_TI.stride(1) != 1:
        x_TI = x_TI.contiguous()
    out_TN = torch.empty((tokens, gated or outputs), dtype=torch.float32 if wide else torch.bfloat16)
    _NATIVE.packed_linear(
        _ISA,
        form,
        x_TI.data_ptr(),
        x_TI.stride(0),
        packed.data_ptr(),
        0 if scales is None else scales.data_ptr(),
        scales is not None and scales.dtype == torch.bfloat16,
        0 if bias_N is None else bias_N.data_ptr(),
        out_TN.data_ptr(),
        wide,
        tokens,
        inputs,
        outputs,
        group,
        gated,
        threads,
    )
    return out_TN


def _filled(weight_NI: Tensor, multiple: int) -> Tensor:
    """Dense rows, filled up with zeros to a multiple of `multiple` inputs."""
    inputs = weight_NI.shape[1]
    if inputs % multiple == 0:
        return weight_NI.contiguous()
    filled = weight_NI.new_zeros(weight_NI.shape[0], -(-inputs // multiple) * multiple)
    filled[:, :inputs] = weight_NI
    return filled


def _panels(words_NW: list[Tensor]) -> Tensor:
    """Stack rows of words and stand those of 32 outputs side by side: [P, W, 32], zeros at the end."""
    outputs, width = sum(len(words) for words in words_NW), words_NW[0].shape[1]
    packed = torch.empty((-(-outputs // _PANEL), width, _PANEL), dtype=torch.int32)
    packed[-1] = 0
    row = 0
    for words in words_NW:
        assert words.shape[1] == width, "stacked weights have equal inputs"
        _NATIVE.pack(words.data_ptr(), packed.data_ptr(), row, len(words), width)
        row += len(words)
    return packed
