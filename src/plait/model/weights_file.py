"""Weights in files: safetensors that appear whole or not at all, and the checksum of what is in them."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
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


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around what writes a file of a run. Raises UserError where that is not possible, as on a full disk."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path} cannot be written ({error}): make room there, then go on with --resume, or give another "
            "--out",
            "out",
        ) from error


def write(path: Path, weights: Mapping[str, Tensor]) -> str:
    """Write a file beside itself and rename it; returns the checksum of the weights in memory.

    Raises:
        UserError: it cannot be written; nothing of it is left.
    """
    partial = path.with_name(f".{path.name}.partial")
    tensors = {name: value.detach().contiguous() for name, value in weights.items()}
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(tensors, partial, {"format": "pt"})
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(path)
        except (OSError, SafetensorError):
            partial.unlink(missing_ok=True)  # what is there of it takes the room that lacks
            raise
    return checksum(weights)


def read(path: Path) -> dict[str, Tensor]:
    """All weights of a file. Raises UserError if there is no such file, or it is not whole."""
    if not path.is_file():
        raise UserError(f"{path} is not there: the checkpoint is incomplete, name an earlier one", "resume")
    try:
        with safe_open(path, framework="pt") as opened:  # type: ignore[no-untyped-call]
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is not whole ({error}): name an earlier checkpoint", "resume") from error


def files_of(folder: Path) -> dict[str, str]:
    """Name of each weight in a model's folder -> its file there. Headers are read, and held against the sizes
    of their files; no weight is.

    Raises:
        UserError: there are no weights, a file is damaged, or the index names what is not there.
    """
    found: dict[str, str] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as opened:  # type: ignore[no-untyped-call]
                found |= dict.fromkeys(opened.keys(), path.name)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{path} is no whole safetensors file ({error}): pull or copy it again", "model"
            ) from error
    if not found:
        raise UserError(f"{folder} holds no *.safetensors weights; convert or pull them", "model")
    return found | _indexed(folder / "model.safetensors.index.json", found)


def _indexed(index: Path, found: Mapping[str, str]) -> dict[str, str]:
    """What an index says of weights, all of which must be there; nothing where there is none."""
    if not index.is_file():
        return {}
    try:
        named = dict(json.loads(index.read_text())["weight_map"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{index} is no index ({error!r}): pull or copy it again", "model") from error
    for name, file in named.items():
        if found.get(name) != file:
            raise UserError(f"{index} has {name} in {file}, where it is not: pull the model again", "model")
    return named


def verified(folder: Path, files: Mapping[str, str]) -> dict[str, Tensor]:
    """The weights of files with these checksums. Raises UserError if they are not what was written."""
    found: dict[str, Tensor] = {}
    for name, wanted in files.items():
        weights = read(folder / name)
        if checksum(weights) != wanted:
            raise UserError(f"{folder / name} does not hold the weights that were written to it")
        found |= weights
    return found
