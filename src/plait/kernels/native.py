"""The native bodies of our ops: the same signatures as in `reference`, over addresses of tensors."""

import torch
from torch import Tensor

from plait.kernels.choice import choose

_CHOICE = choose()
assert _CHOICE.native is not None, "import this only where native kernels are in use"
_NATIVE, _ISA, _PANEL = _CHOICE.native, _CHOICE.isa, _CHOICE.native.panel


def pack(weights_NI: list[Tensor]) -> Tensor:
    """Stack float32 weights, reordered into panels [N / 32, I, 32], the last one filled up with zeros."""
    outputs, inputs = sum(weight.shape[0] for weight in weights_NI), weights_NI[0].shape[1]
    packed = torch.empty((-(-outputs // _PANEL), inputs, _PANEL))
    packed[-1] = 0
    row = 0
    for weight_NI in weights_NI:
        assert weight_NI.dtype == torch.float32, "only float32 is packed"
        assert weight_NI.shape[1] == inputs, "stacked weights have equal inputs"
        dense_NI = weight_NI.contiguous()
        _NATIVE.pack(dense_NI.data_ptr(), packed.data_ptr(), row, dense_NI.shape[0], inputs)
        row += dense_NI.shape[0]
    return packed


def linear(x_TI: Tensor, packed: Tensor, bias_N: Tensor | None, outputs: int, threads: int) -> Tensor:
    """`x @ weight.T + bias`; each element is one chain over the inputs, whatever the batch."""
    assert x_TI.dtype == torch.float32, "only float32"
    assert packed.shape[1] == x_TI.shape[1], "inputs are not those that were packed"
    if x_TI.stride(1) != 1:
        x_TI = x_TI.contiguous()
    out_TN = torch.empty((x_TI.shape[0], outputs))
    _NATIVE.linear(
        _ISA,
        x_TI.data_ptr(),
        x_TI.stride(0),
        packed.data_ptr(),
        0 if bias_N is None else bias_N.data_ptr(),
        out_TN.data_ptr(),
        x_TI.shape[0],
        x_TI.shape[1],
        outputs,
        threads,
    )
    return out_TN
