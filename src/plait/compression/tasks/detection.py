"""Object detection: a reference detector, and what a policy makes of it at three fidelities."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from plait.compression.apply import compressed
from plait.compression.evaluator import Fidelity
from plait.compression.graph import CutConfig, Network, trace
from plait.compression.tasks.annotated import Annotated, read_voc
from plait.compression.tasks.average_precision import Found, mean_average_precision
from plait.compression.tasks.detector import Detector, DetectorConfig, detection_loss, detections
from plait.compression.tasks.images import floats
from plait.compression.tasks.train import TrainConfig, descend
from plait.spec.errors import UserError
from plait.spec.policy import CompressionPolicy

HEADS = ("heads.0", "heads.1")
"""Layers that write boxes and classes."""


@dataclass(frozen=True)
class Detection:
    """A detector, its data and how it is trained. It is a `Task`."""

    data: Path
    """A folder in Pascal VOC's form."""
    classes: tuple[str, ...]
    reference: Path
    """Weights of the reference (safetensors); made by `pretrain` where they are absent."""
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    cut: CutConfig = field(default_factory=lambda: CutConfig(answers=HEADS))
    pretraining: TrainConfig = field(
        default_factory=lambda: TrainConfig(images=12_000, rate=0.02, batch=16, clip=5.0)
    )
    short: TrainConfig = field(
        default_factory=lambda: TrainConfig(images=400, rate=0.005, batch=16, clip=5.0)
    )
    full: TrainConfig = field(
        default_factory=lambda: TrainConfig(images=4_000, rate=0.01, batch=16, clip=5.0)
    )
    seed: int = 0

    @cached_property
    def protocol(self) -> str:
        """A hash of all settings and of the reference's weights."""
        told = {name: value for name, value in asdict(self).items() if name not in ("data", "reference")}
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
        if not self.reference.exists():
            raise UserError(f"there is no reference at {self.reference}: train one with `pretrain`", "model")
        digest.update(self.reference.read_bytes())
        return digest.hexdigest()[:16]

    def open(self) -> "Finder":
        """Load the images and the reference."""
        return Finder(self)

    def pretrain(self) -> None:
        """Train the reference and write it, unless it is there."""
        if self.reference.exists():
            return
        torch.manual_seed(self.seed)
        module = Detector(self.detector)
        fit(module, self.images("train"), self.pretraining, self.seed)
        self.reference.parent.mkdir(parents=True, exist_ok=True)
        partial = self.reference.with_suffix(".partial")
        save_file(module.state_dict(), partial)
        partial.rename(self.reference)

    def images(self, split: str) -> Annotated:
        """One of the splits train, val and test."""
        return read_voc(self.data, split, self.detector.pixels, self.classes)

    def traced(self) -> Network:
        """Layers, groups and space of the detector, without its weights."""
        example = torch.zeros(1, 3, self.detector.pixels, self.detector.pixels)
        return trace(Detector(self.detector), example, called, self.cut)


class Finder:
    """A `Detection` with its images and its reference in memory. It is a `Measurer`."""

    def __init__(self, task: Detection) -> None:
        torch.set_num_threads(1)
        self.task, self.network = task, task.traced()
        self.train_images, self.validation = task.images("train"), task.images("val")
        self.reference = Detector(task.detector)
        self.reference.load_state_dict(load_file(task.reference))
        self.reference.eval()

    @cached_property
    def test(self) -> Annotated:
        """Images that no choice was made with."""
        return self.task.images("test")

    def build(self, policy: CompressionPolicy, fidelity: Fidelity, seed: int) -> nn.Module:
        """The compressed detector, trained as far as the fidelity says."""
        batches = floats(self.train_images.pixels_NCHW[:96]).split(32)
        module = compressed(self.reference, called, self.network, policy, batches)
        told = {Fidelity.L0: None, Fidelity.L1: self.task.short, Fidelity.L2: self.task.full}[fidelity]
        if told is not None and told.images:
            fit(module, self.train_images, told, seed)
        return module.eval()

    def measure(self, policy: CompressionPolicy, fidelity: Fidelity, seed: int) -> dict[str, float]:
        """On the validation images: the loss with its sign changed (`score`), and mAP@0.5 in percent (`map`).

        On few images the loss is far less noisy than precision is.
        """
        module = self.build(policy, fidelity, seed)
        with torch.no_grad():
            answers = _answers(module, self.validation)
            loss = float(detection_loss(answers, module.anchor_A4, self.validation.truth))
        return {"score": -loss, "map": 100 * precision(module, self.validation)}


def called(module: nn.Module, images_BCHW: Tensor) -> Tensor:
    """The detector's answers."""
    return module(images_BCHW)


def precision(module: nn.Module, data: Annotated) -> float:
    """Mean average precision at an overlap of 0.5."""
    found = detections(_answers(module, data), module.anchor_A4)
    return mean_average_precision(found, data.truth, len(data.classes))


@torch.no_grad()
def _answers(module: nn.Module, data: Annotated) -> Tensor:
    parts = data.pixels_NCHW.split(32)
    return torch.cat([module.eval()(floats(part)) for part in parts])


def fit(module: nn.Module, data: Annotated, config: TrainConfig, seed: int) -> None:
    """Train a detector in place; images are mirrored both ways at random."""

    def loss_of(chosen: Tensor, generator: torch.Generator) -> Tensor:
        images, truth = [], []
        for number in chosen.tolist():
            flips = (torch.rand(2, generator=generator) < 0.5).tolist()
            image, boxes = mirrored(data.pixels_NCHW[number], data.truth[number], *flips)
            images.append(image)
            truth.append(boxes)
        return detection_loss(module(floats(torch.stack(images))), module.anchor_A4, truth)

    descend(module, len(data.truth), loss_of, config, seed)


def mirrored(image_CHW: Tensor, truth: Found, across: bool, upside: bool) -> tuple[Tensor, Found]:
    """An image and its boxes, mirrored in width, in height, or both."""
    left, top, right, bottom = truth.box_N4.unbind(1)
    if across:
        image_CHW, left, right = image_CHW.flip(2), 1 - right, 1 - left
    if upside:
        image_CHW, top, bottom = image_CHW.flip(1), 1 - bottom, 1 - top
    return image_CHW, Found(torch.stack([left, top, right, bottom], 1), truth.class_N, truth.score_N)
