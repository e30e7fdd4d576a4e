"""Images with boxes: Pascal VOC's XML and COCO's JSON.

Legend: N images.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from plait.compression.tasks.average_precision import Found
from plait.spec.errors import UserError


@dataclass(frozen=True)
class Annotated:
    """Images and what is to be found in them."""

    pixels_NCHW: Tensor
    """uint8."""
    truth: list[Found]
    classes: tuple[str, ...]


def read_voc(folder: Path, split: str, pixels: int, classes: tuple[str, ...]) -> Annotated:
    """The images that ImageSets/Main/`split`.txt names, with boxes of Annotations/*.xml.

    Raises:
        UserError: the split is not there, or an object is of another class.
    """
    names = folder / "ImageSets" / "Main" / f"{split}.txt"
    if not names.exists():
        raise UserError(f"there is no {names}: name a folder in Pascal VOC's form", "data")
    images, truth = [], []
    for name in names.read_text().split():
        root = ElementTree.parse(folder / "Annotations" / f"{name}.xml").getroot()
        path = next(p for p in (folder / "JPEGImages").glob(f"{name}.*"))
        image, width, height = _read(path, pixels)
        boxes = []
        for thing in root.iter("object"):
            kind = thing.findtext("name", "")
            if kind not in classes:
                raise UserError(
                    f"{name}.xml has an object {kind}: choose classes {', '.join(classes)}", "data"
                )
            ends = [float(thing.findtext(f"bndbox/{end}", "nan")) for end in ("xmin", "ymin", "xmax", "ymax")]
            boxes.append((ends, classes.index(kind)))
        images.append(image)
        truth.append(_truth(boxes, width, height))
    return Annotated(torch.from_numpy(np.stack(images)), truth, classes)


def read_coco(annotations: Path, folder: Path, pixels: int) -> Annotated:
    """The images of a COCO file, below `folder`; crowds are left out.

    Raises:
        UserError: the file is not there, or has no images.
    """
    if not annotations.exists():
        raise UserError(f"there is no {annotations}: name a file in COCO's form", "data")
    told = json.loads(annotations.read_text())
    kinds = {category["id"]: number for number, category in enumerate(told["categories"])}
    boxes: dict[int, list[tuple[list[float], int]]] = {image["id"]: [] for image in told["images"]}
    for one in told["annotations"]:
        if not one.get("iscrowd"):
            left, top, width, height = one["bbox"]
            ends = [left, top, left + width, top + height]
            boxes[one["image_id"]].append((ends, kinds[one["category_id"]]))
    read = [(_read(folder / image["file_name"], pixels), image["id"]) for image in told["images"]]
    if not read:
        raise UserError(f"{annotations} has no images", "data")
    truth = [_truth(boxes[number], width, height) for (_, width, height), number in read]
    stacked = torch.from_numpy(np.stack([image for (image, _, _), _ in read]))
    return Annotated(stacked, truth, tuple(category["name"] for category in told["categories"]))


def _read(path: Path, pixels: int) -> tuple[np.ndarray, int, int]:
    """An image (3, pixels, pixels), and its own width and height."""
    image = Image.open(path).convert("RGB")
    small = image.resize((pixels, pixels), Image.Resampling.BILINEAR)
    return np.asarray(small).transpose(2, 0, 1).copy(), image.width, image.height


def _truth(boxes: list[tuple[list[float], int]], width: int, height: int) -> Found:
    """Boxes in shares of the image; those without an area are left out."""
    ends = torch.tensor([box for box, _ in boxes]).view(-1, 4) / torch.tensor([width, height] * 2)
    real = (ends[:, 2:] > ends[:, :2]).all(1)
    kinds = torch.tensor([kind for _, kind in boxes], dtype=torch.int64)
    return Found(ends[real], kinds[real], torch.ones(int(real.sum())))
