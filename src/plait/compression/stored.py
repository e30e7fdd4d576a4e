"""Quantised networks in files: weights as whole numbers packed without gaps, whatever their bits.

Compact on disk. For engines of others there are other forms; this one is read back by `unpack`.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from plait.compression.quantisers import QuantLayer


def save(module: nn.Module, path: Path) -> int:
    """Write a quantised network, the weights of its quantised layers packed; returns the file's bytes."""
    tensors = {}
    quantised = {name: part for name, part in module.named_modules() if isinstance(part, QuantLayer)}
    packed = {f"{name}.layer.weight" for name, part in quantised.items() if part.weight_step is not None}
    for name, tensor in module.state_dict().items():
        if name not in packed:
            tensors[name] = tensor.contiguous()
    for name, part in quantised.items():
        if part.weight_step is not None:
            codes = part.codes()
            tensors[f"{name}.layer.weight_packed"] = pack(codes, int(part.weight_bits))
            tensors[f"{name}.layer.weight_shape"] = torch.tensor(codes.shape)
    save_file(tensors, path, metadata={"format": "pt"})
    return path.stat().st_size


def pack(codes: Tensor, bits: int) -> Tensor:
    """int8 codes as bytes without gaps, the lowest bit first, zero in their middle."""
    raised = codes.flatten().to(torch.int16) + 2 ** (bits - 1)
    planes = (raised[:, None] >> torch.arange(bits, dtype=torch.int16) & 1).flatten()
    filled = nn.functional.pad(planes, (0, -len(planes) % 8)).view(-1, 8)
    return (filled << torch.arange(8, dtype=torch.int16)).sum(1).to(torch.uint8)


def unpack(packed: Tensor, bits: int, shape: torch.Size) -> Tensor:
    """The codes that `pack` packed."""
    planes = (packed[:, None].to(torch.int16) >> torch.arange(8, dtype=torch.int16) & 1).flatten()
    whole = planes[: shape.numel() * bits].view(-1, bits) << torch.arange(bits, dtype=torch.int16)
    return (whole.sum(1) - 2 ** (bits - 1)).to(torch.int8).view(shape)
