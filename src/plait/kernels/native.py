"""The native bodies of our ops: the same signatures as in `reference`, over addresses of tensors."""

import torch
from torch import Tensor

from plait.kernels.choice import choose

_CHOICE = choose()
assert _CHOICE.native is not None, "import this only where native kernels are in use"
_NATIVE, _ISA, _PANEL = _CHOICE.native, _CHOICE.isa, _CHOICE.native.panel


def store_kv(k_TKD: Tensor, v_TKD: Tensor, slots_T: Tensor, k_SKD: Tensor, v_SKD: Tensor) -> None:
    """Write the keys and values of new tokens into their slots."""
    assert slots_T.dtype == torch.int32, "slots are int32"
    tokens, heads, size = k_TKD.shape
    token_bytes = heads * size * k_SKD.element_size()
    for new_TKD, pool_SKD in ((k_TKD, k_SKD), (v_TKD, v_SKD)):
        assert new_TKD.shape[1:] == pool_SKD.shape[1:], (
            f"{new_TKD.shape[1:]} does not fit {pool_SKD.shape[1:]}"
        )
        if new_TKD.dtype != pool_SKD.dtype or not _rows_are_dense(new_TKD):
            new_TKD = new_TKD.to(pool_SKD.dtype).contiguous()
        stride = new_TKD.stride(0) * new_TKD.element_size()
        _NATIVE.store_kv(
            new_TKD.data_ptr(), stride, slots_T.data_ptr(), pool_SKD.data_ptr(), tokens, token_bytes
        )


def attend(  # noqa: PLR0913 - an op has a flat signature
    q_THD: Tensor,
    k_SKD: Tensor,
    v_SKD: Tensor,
    tables_RP: Tensor,
    rows_R: Tensor,
    starts_R: Tensor,
    lens_R: Tensor,
    positions_T: Tensor,
    page: int,
    scale: float,
    window: int,
    softcap: float,
    threads: int,
) -> tuple[Tensor, Tensor]:
    """Causal attention over paged keys and values; see `reference.attend`."""
    tokens, heads, size = q_THD.shape
    assert size in range(8, 257, 8), f"head size {size} is not a multiple of 8 up to 256"
    assert q_THD.dtype == k_SKD.dtype, "queries and pools of one type"
    assert q_THD.dtype in (torch.float32, torch.bfloat16), f"{q_THD.dtype} is neither float32 nor bfloat16"
    assert tables_RP.dtype == torch.int32, "tables are int32"
    assert positions_T.dtype == torch.int64, "positions are int64"
    if not _rows_are_dense(q_THD):
        q_THD = q_THD.contiguous()
    out_THD = torch.empty((tokens, heads, size), dtype=q_THD.dtype)
    lse_TH = torch.empty((tokens, heads))
    _NATIVE.attend(
        _ISA,
        q_THD.data_ptr(),
        q_THD.stride(0),
        k_SKD.data_ptr(),
        v_SKD.data_ptr(),
        tables_RP.data_ptr(),
        tables_RP.stride(0),
        rows_R.data_ptr(),
        starts_R.data_ptr(),
        lens_R.data_ptr(),
        positions_T.data_ptr(),
        out_THD.data_ptr(),
        lse_TH.data_ptr(),
        rows_R.shape[0],
        heads,
        k_SKD.shape[1],
        size,
        page,
        scale,
        window,
        softcap,
        q_THD.dtype == torch.bfloat16,
        threads,
    )
    return out_THD, lse_TH


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


def _rows_are_dense(x_THD: Tensor) -> bool:
    """Whether each token's heads lie side by side, though tokens may be apart."""
    return x_THD.stride(2) == 1 and x_THD.stride(1) == x_THD.shape[2]
