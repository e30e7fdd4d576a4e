"""Labelled images from parquet files or class folders, as bytes, in one place of memory.

Legend: N images, C channels, H height, W width.
"""

import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pyarrow import parquet
from safetensors.torch import load_file, save_file
from torch import Tensor

from plait.spec.errors import UserError

ENDINGS = (".jpeg", ".jpg", ".png", ".bmp", ".webp")


@dataclass(frozen=True)
class Images:
    """Bytes and classes."""

    pixels_NCHW: Tensor
    """uint8."""
    classes_N: Tensor
    """int64."""

    def __len__(self) -> int:
        return len(self.classes_N)

    def part(self, start: int, count: int) -> "Images":
        """`count` images from `start`."""
        return Images(self.pixels_NCHW[start : start + count], self.classes_N[start : start + count])


def floats(pixels_NCHW: Tensor) -> Tensor:
    """Bytes as floats of about zero mean and a quarter's deviation times four."""
    return (pixels_NCHW.float() - 127.5) / 63.75


def load(source: Path, pixels: int, limit: int, cache: Path | None = None) -> Images:
    """The first `limit` images of a parquet file (columns img{bytes}, label), or evenly of class folders.

    Images become `pixels` x `pixels`: by averaging where that divides their size, else by bilinear resizing.
    With `cache`, decoded images are kept there and read from there the next time.

    Raises:
        UserError: there is nothing at `source`, or it holds no images.
    """
    if not source.exists():
        raise UserError(
            f"there is nothing at {source}: name a parquet file or a folder of class folders", "data"
        )
    key = hashlib.sha256(f"{source.resolve()} {source.stat().st_mtime_ns} {pixels} {limit}".encode())
    kept = cache / f"images-{key.hexdigest()[:16]}.safetensors" if cache else None
    if kept and kept.exists():
        found = load_file(kept)
        return Images(found["pixels"], found["classes"])
    rows = _from_folder(source, limit) if source.is_dir() else _from_parquet(source, limit)
    decoded = [(_decode(data, pixels), label) for data, label in rows]
    if not decoded:
        raise UserError(f"{source} holds no images", "data")
    made = Images(
        torch.from_numpy(np.ascontiguousarray(np.stack([image for image, _ in decoded]))),
        torch.tensor([label for _, label in decoded]),
    )
    if kept:
        kept.parent.mkdir(parents=True, exist_ok=True)
        save_file({"pixels": made.pixels_NCHW, "classes": made.classes_N}, kept)
    return made


def _from_parquet(path: Path, limit: int) -> Iterable[tuple[bytes, int]]:
    file = parquet.ParquetFile(path)
    left = limit
    for batch in file.iter_batches(batch_size=1000, columns=["img", "label"]):
        rows = batch.slice(0, left).to_pylist()
        yield from ((row["img"]["bytes"], row["label"]) for row in rows)
        left -= len(rows)
        if not left:
            return


def _from_folder(folder: Path, limit: int) -> Iterable[tuple[bytes, int]]:
    """Images of folders by turns, so that a limit takes of all classes alike."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    files = [sorted(p for p in path.iterdir() if p.suffix.lower() in ENDINGS) for path in classes]
    placed = [(turn, label, path) for label, paths in enumerate(files) for turn, path in enumerate(paths)]
    for _, label, path in sorted(placed)[:limit]:
        yield path.read_bytes(), label


def _decode(data: bytes, pixels: int) -> np.ndarray:
    """One image (3, pixels, pixels)."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    if image.width == image.height and image.width % pixels == 0:
        by = image.width // pixels
        whole = np.asarray(image, dtype=np.float32).reshape(pixels, by, pixels, by, 3).mean((1, 3))
        return whole.round().astype(np.uint8).transpose(2, 0, 1)
    return np.asarray(image.resize((pixels, pixels), Image.Resampling.BILINEAR)).transpose(2, 0, 1).copy()
