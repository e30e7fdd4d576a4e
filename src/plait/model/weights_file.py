"""Weights in files: safetensors that appear whole or not at all, and the checksum of what is in them."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, uint8

from plait.spec.errors import UserError


def checksum(weights: Mapping[str, Tensor]) -> str:
    """Of names, types, shapes and bytes, in the order of names; hex."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(weights):
        value = weights[name].detach().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.reshape(-1).view(uint8).cpu().numpy())
    return digest.hexdigest()


def write(path: Path, weights: Mapping[str, Tensor]) -> str:
    """Write a file beside itself and rename it; returns the checksum of the weights in memory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    save_file(
        {name: value.detach().contiguous() for name, value in weights.items()}, partial, {"format": "pt"}
    )
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)
    return checksum(weights)


def read(path: Path) -> dict[str, Tensor]:
    """All weights of a file. Raises UserError if there is no such file."""
    if not path.is_file():
        raise UserError(f"{path} is not there: the checkpoint is incomplete, name an earlier one", "resume")
    with safe_open(path, framework="pt") as opened:  # type: ignore[no-untyped-call]
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping


def verified(folder: Path, files: Mapping[str, str]) -> dict[str, Tensor]:
    """The weights of files with these checksums. Raises UserError if they are not what was written."""
    found: dict[str, Tensor] = {}
    for name, wanted in files.items():
        weights = read(folder / name)
        if checksum(weights) != wanted:
            raise UserError(f"{folder / name} does not hold the weights that were written to it")
        found |= weights
    return found
