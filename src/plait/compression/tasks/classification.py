"""Image classification: a reference network, and what a policy makes of it at three fidelities.

A measurement starts from the reference's weights: channels are removed, layers quantised, activations' steps
set and norms estimated anew on training images; then it is trained as far as its fidelity says, with the
reference as teacher, and measured on the validation images. Test images are for what was chosen in the end.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from plait.compression.apply import compressed
from plait.compression.evaluator import Fidelity
from plait.compression.graph import CutConfig, Network, trace
from plait.compression.tasks.images import Images, floats, load
from plait.compression.tasks.networks import NetworkConfig, logits, make
from plait.compression.tasks.train import TrainConfig, evaluate, train
from plait.spec.errors import UserError
from plait.spec.policy import CompressionPolicy


@dataclass(frozen=True)
class Classification:
    """A network, its data and how it is trained. It is a `Task`."""

    train_data: Path
    """A parquet file or a folder of class folders."""
    test_data: Path
    reference: Path
    """Weights of the reference (safetensors); made by `pretrain` where they are absent."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    cut: CutConfig = field(default_factory=CutConfig)
    train_images: int = 45_000
    validation_images: int = 5_000
    """Taken after the training images."""
    test_images: int = 10_000
    pretraining: TrainConfig = field(default_factory=lambda: TrainConfig(images=45_000 * 60, rate=0.1))
    short: TrainConfig = field(default_factory=lambda: TrainConfig(images=10_000, rate=0.02, teach=0.5))
    """At L1."""
    full: TrainConfig = field(default_factory=lambda: TrainConfig(images=45_000 * 20, rate=0.04, teach=0.5))
    """At L2."""
    calibration_images: int = 512
    seed: int = 0
    """Of the reference's training."""
    cache: Path | None = None
    """Where decoded images are kept."""

    @cached_property
    def protocol(self) -> str:
        """A hash of all settings and of the reference's weights."""
        told = {
            k: v
            for k, v in asdict(self).items()
            if k not in ("cache", "train_data", "test_data", "reference")
        }
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
        if not self.reference.exists():
            raise UserError(f"there is no reference at {self.reference}: train one with `pretrain`", "model")
        digest.update(self.reference.read_bytes())
        return digest.hexdigest()[:16]

    def open(self) -> "Classifier":
        """Load the images and the reference."""
        return Classifier(self)

    def pretrain(self) -> None:
        """Train the reference and write it, unless it is there."""
        if self.reference.exists():
            return
        torch.manual_seed(self.seed)
        module = make(self.network)
        train(module, self.images(test=False).part(0, self.train_images), self.pretraining, self.seed)
        self.reference.parent.mkdir(parents=True, exist_ok=True)
        partial = self.reference.with_suffix(".partial")
        save_file(module.state_dict(), partial)
        partial.rename(self.reference)

    def images(self, *, test: bool) -> Images:
        """Training and validation images together, or test images."""
        source = self.test_data if test else self.train_data
        count = self.test_images if test else self.train_images + self.validation_images
        return load(source, self.network.pixels, count, self.cache)

    def example(self) -> torch.Tensor:
        """An input to trace with."""
        return torch.zeros(1, 3, self.network.pixels, self.network.pixels)

    def traced(self) -> Network:
        """Layers, groups and space of the network, without its weights."""
        return trace(make(self.network), self.example(), logits, self.cut)


class Classifier:
    """A `Classification` with its images and its reference in memory. It is a `Measurer`."""

    def __init__(self, task: Classification) -> None:
        """Raises UserError where the reference's file is damaged or of another network."""
        torch.set_num_threads(1)  # measurements are parallel, each is not: labels do not depend on how many
        self.task = task
        images = task.images(test=False)
        self.train_images = images.part(0, task.train_images)
        self.validation = images.part(task.train_images, task.validation_images)
        self.network = task.traced()
        self.reference = make(task.network)
        try:
            self.reference.load_state_dict(load_file(task.reference))
        except (RuntimeError, SafetensorError) as error:
            raise UserError(
                f"{task.reference} does not hold this network's weights ({error}): remove it to train anew",
                "model",
            ) from error
        self.reference.eval()

    @cached_property
    def test(self) -> Images:
        """Images that no choice was made with."""
        return self.task.images(test=True)

    def build(self, policy: CompressionPolicy, fidelity: Fidelity, seed: int) -> nn.Module:
        """The compressed network, trained as far as the fidelity says."""
        task = self.task
        count = min(task.calibration_images, len(self.train_images))
        batches = floats(self.train_images.pixels_NCHW[:count]).split(128)
        module = compressed(self.reference, logits, self.network, policy, batches)
        told = {Fidelity.L0: None, Fidelity.L1: task.short, Fidelity.L2: task.full}[fidelity]
        if told is not None and told.images:
            train(module, self.train_images, told, seed, self.reference)
        return module.eval()

    def measure(self, policy: CompressionPolicy, fidelity: Fidelity, seed: int) -> dict[str, float]:
        """Accuracy in percent (`score`) and cross-entropy on the validation images; after the whole training
        also accuracy on those that no choice is made with (`test`)."""
        module = self.build(policy, fidelity, seed)
        accuracy, loss = evaluate(module, self.validation)
        last = {"test": 100 * evaluate(module, self.test)[0]} if fidelity is Fidelity.L2 else {}
        return {"score": 100 * accuracy, "loss": loss} | last
