"""Language models: a reference decoder, and how far what a policy makes of it is from it.

A measurement trains nothing: pieces are cut and rounded with the help of calibration text, and the compressed
decoder reads validation text. Its score is -log KL, the KL divergence from the reference's next-token
distribution, averaged over tokens; its logarithm is what layers' errors add up to most evenly. Test text, of
other files, is for what was chosen in the end.
Legend: T tokens, V words of the vocabulary.
"""

import copy
import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from plait.compression.calibration import Calibration, calibrate
from plait.compression.evaluator import Fidelity
from plait.compression.language import Decoder, DecoderConfig, open_decoder, space_of, storage_of
from plait.compression.language_apply import Carver, CarverConfig
from plait.compression.space import Space
from plait.compression.targets import TARGETS
from plait.compression.tasks.text import TextConfig, sequences
from plait.kernels.choice import choose
from plait.model.load import load_config, quietly
from plait.spec.errors import UserError
from plait.spec.policy import CompressionPolicy

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LEAST_KL = 1e-6
"""Nats a token below which two models count as equal."""


@dataclass(frozen=True)
class Language:
    """A decoder, its text, and what may be chosen for it. It is a `Task`."""

    folder: Path
    """The reference: config.json, tokenizer and safetensors, not quantised."""
    calibration: TextConfig
    """What weights are rounded and cut with."""
    validation: TextConfig
    """What policies are chosen with."""
    test: TextConfig
    """For final figures; no file of it is in the others."""
    cache: Path
    """Folder for what calibration finds."""
    choice: DecoderConfig = field(default_factory=DecoderConfig)
    target: str = "plait"
    """One of `TARGETS`."""
    compensate: bool = True
    """Round with GPTQ; else each weight by itself."""
    dtype: str = "auto"
    """Type in which compressed decoders compute: float32, bfloat16, or auto: bfloat16 where this CPU has
    products of it, as the engine does. The reference computes in float32."""
    seed: int = 0
    """Of the tokens that are drawn for gradients."""

    def __post_init__(self) -> None:
        shared = set(self.test.files) & {*self.calibration.files, *self.validation.files}
        if shared:
            raise UserError(f"{min(shared)} is to test with and to choose with: name another file", "text")
        if self.dtype not in ("auto", *DTYPES):
            raise UserError(f"dtype is {self.dtype}; choose one of auto, {', '.join(DTYPES)}", "dtype")
        if self.target not in TARGETS:
            raise UserError(f"no target is named {self.target}: choose one of {', '.join(TARGETS)}", "target")

    @cached_property
    def protocol(self) -> str:
        """A hash of all settings, of the text that is used and of the reference's weights."""
        told = [asdict(self.choice), self.target, self.compensate, str(self.computed), self.calibrated]
        digest = hashlib.sha256(json.dumps(told).encode())
        for ids_T in sequences(self.folder, self.validation):
            digest.update(ids_T.numpy())
        return digest.hexdigest()[:16]

    @cached_property
    def calibrated(self) -> str:
        """A hash of all that calibration depends on."""
        digest = hashlib.sha256(f"{self.computed} {self.seed}".encode())
        for ids_T in sequences(self.folder, self.calibration):
            digest.update(ids_T.numpy())
        for path in sorted(self.folder.glob("*.safetensors")):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:16]

    @cached_property
    def rounded(self) -> str:
        """A hash of all that rounded layers depend on."""
        storage = asdict(storage_of(self.choice, TARGETS[self.target]))
        told = [self.calibrated, self.choice.bits, storage, self.compensate]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]

    @property
    def computed(self) -> torch.dtype:
        """What `dtype` means here."""
        fast = choose().isa == "AVX-512-bf16"
        return DTYPES[("bfloat16" if fast else "float32") if self.dtype == "auto" else self.dtype]

    @cached_property
    def decoder(self) -> Decoder:
        """Names and sizes."""
        return open_decoder(self.folder)

    @cached_property
    def space(self) -> Space:
        """All policies that the target can load."""
        return space_of(self.decoder, self.choice, TARGETS[self.target])

    def open(self) -> "Reader":
        """Load the reference and calibrate, unless the cache has what calibration found."""
        return Reader(self)


@dataclass(frozen=True, slots=True)
class Distance:
    """How a model's next tokens differ from the reference's."""

    kl_T: Tensor
    """KL divergence from the reference, nats, for each position."""
    loss_T: Tensor
    """Negative log likelihood of the text, nats; shorter by one for each sequence."""

    @property
    def kl(self) -> float:
        """Mean KL divergence, nats a token."""
        return float(self.kl_T.mean())

    @property
    def perplexity(self) -> float:
        """Of the text."""
        return math.exp(float(self.loss_T.mean()))


class HeldText:
    """Text, and what the reference says of each position."""

    def __init__(self, reference: nn.Module, tokens: list[Tensor]) -> None:
        self.tokens = tokens
        with torch.inference_mode():
            self.log_TV = [_log_probabilities(reference, ids_T) for ids_T in tokens]

    @torch.inference_mode()
    def distance(self, module: nn.Module) -> Distance:
        """Of a model from the reference."""
        kl, loss = [], []
        for ids_T, theirs_TV in zip(self.tokens, self.log_TV, strict=True):
            ours_TV = _log_probabilities(module, ids_T)
            kl.append((theirs_TV.exp() * (theirs_TV - ours_TV)).sum(-1))
            loss.append(-ours_TV[:-1].gather(1, ids_T[1:, None])[:, 0])
        return Distance(torch.cat(kl), torch.cat(loss))


class Reader:
    """A `Language` with its reference and its pieces in memory. It is a `Measurer`."""

    def __init__(self, task: Language) -> None:
        torch.set_num_threads(1)  # measurements are parallel, each is not: labels do not depend on how many
        self.task, self.decoder = task, task.decoder
        self.reference = load_reference(task.folder)
        told = CarverConfig(
            bits=task.choice.bits,
            storage=storage_of(task.choice, TARGETS[task.target]),
            compensate=task.compensate,
            dtype=task.computed,
            cache=task.cache / f"rounded-{task.rounded}",
        )
        self.carver = Carver(self.reference, self.decoder, self._calibration(), told)

    @cached_property
    def validation(self) -> HeldText:
        """Text that policies are chosen with."""
        return HeldText(self.reference, sequences(self.task.folder, self.task.validation))

    @cached_property
    def test(self) -> HeldText:
        """Text that no choice was made with."""
        return HeldText(self.reference, sequences(self.task.folder, self.task.test))

    def measure(self, policy: CompressionPolicy, fidelity: Fidelity, seed: int) -> dict[str, float]:
        """-log KL (`score`), KL and perplexity on the validation text; nothing depends on the seed.

        Raises:
            UserError: a fidelity that trains.
        """
        if fidelity is not Fidelity.L0:
            raise UserError("language models are measured without training: fidelity L0", "fidelity")
        found = self.validation.distance(self.carver.build(policy))
        score = -math.log(max(found.kl, LEAST_KL))
        return {"score": score, "kl": found.kl, "perplexity": found.perplexity}

    def _calibration(self) -> Calibration:
        path = self.task.cache / f"calibration-{self.task.calibrated}.safetensors"
        if not path.exists():
            tokens = sequences(self.task.folder, self.task.calibration)
            module = copy.deepcopy(self.reference).to(self.task.computed)
            calibrate(module, self.decoder, tokens, self.task.seed).save(path)
        return Calibration.load(path, self.decoder)


def text_of(train: Path, test: Path, tokens: int) -> dict[str, TextConfig]:
    """What a task of two files reads: eight times as much text to calibrate with as to choose with, and four
    times as much to test with. Keys are fields of `Language`."""
    return {
        "calibration": TextConfig((train,), 8 * tokens),
        "validation": TextConfig((train,), tokens, skip=8 * tokens),
        "test": TextConfig((test,), 4 * tokens),
    }


def load_reference(folder: Path) -> nn.Module:
    """The folder's model in float32, for reading only.

    Raises:
        UserError: it is quantised already, or holds no weights.
    """
    config = load_config(folder)
    if getattr(config, "quantization_config", None):
        raise UserError(f"{folder} is quantised already: name the folder that it was made from", "model")
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{folder} holds no *.safetensors weights; convert or pull them", "model")
    with quietly():
        module = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=False, local_files_only=True, use_safetensors=True
        )
    return module.eval().requires_grad_(False)


def _log_probabilities(module: nn.Module, ids_T: Tensor) -> Tensor:
    return module(ids_T[None], use_cache=False).logits[0].float().log_softmax(-1)
