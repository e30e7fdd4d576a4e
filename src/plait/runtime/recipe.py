"""`Recipe`: everything that `plait align` is told, read from YAML and checked before any work starts."""

import difflib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, TypeVar

import pydantic
import yaml

from plait.rlhf.core import InterStageConfig
from plait.runtime.sinks import LogRecipe
from plait.spec.errors import NotFound, UserError
from plait.training.adapter import LoraConfig
from plait.training.device import Backend
from plait.training.experience import Estimator, ExperienceConfig
from plait.training.kl_control import KlControlConfig
from plait.training.losses import ValueLossConfig
from plait.training.objectives import PolicyConfig
from plait.training.orders import OptimiserConfig

Told = TypeVar("Told")


class Fusion(StrEnum):
    """How the pipelines of Actor and Critic share the ranks."""

    OFF = "off"
    """One after the other."""
    GREEDY = "greedy"
    """Whatever can run runs."""
    SEARCH = "search"
    """The best schedule found for the measured stage times."""


@dataclass(frozen=True)
class ModelsRecipe:
    """Which models there are: folders, hub ids or aliases."""

    actor: str
    """A causal language model: what is aligned."""
    reference: str | None = None
    """What the Actor is kept near; None: the Actor as it was."""
    critic: str | None = None
    """Where the Critic starts; None: from the reward model, or without one from the Actor."""
    reward: str | None = None
    """A sequence classifier with one label; None: `reward_function` scores."""
    reward_function: str | None = None
    """FILE.py:NAME in TRL's, verl's or OpenRLHF's signature, or `gsm8k`; None: `reward` scores."""

    def __post_init__(self) -> None:
        if (self.reward is None) == (self.reward_function is None):
            raise UserError(
                "models needs exactly one of reward and reward_function: name the one that is to score",
                "models",
            )


@dataclass(frozen=True)
class DataRecipe:
    """Prompts."""

    path: str
    """JSONL; each row an object. A path is taken from the recipe's folder."""
    prompt: str = "prompt"
    """Column of the prompt: text, or a list of messages, to which the chat template is applied."""
    chat: bool = False
    """A text is one message of the user, to which the chat template is applied."""
    max_prompt_tokens: int = 512
    """Longer prompts are left out."""


@dataclass(frozen=True)
class RolloutRecipe:
    """How samples are drawn."""

    prompts: int = 8
    """Of each iteration."""
    samples: int = 1
    """Of each prompt; groups need two or more."""
    max_tokens: int = 64
    """Longest response."""
    instances: int = 1
    """Of the engine that draws."""
    threads: int = 1
    """Of each instance."""
    kv_tokens: int | None = None
    """KV slots of each instance; None: what the largest possible batch needs."""
    dtype: str = "float32"
    """Of the generator's weights: float32, the trainer's, or bfloat16."""
    weights: Literal["auto", "int8"] = "auto"
    """Of the generator: the trainer's, or its linear layers rounded to 8 bits at every hand-over. The
    trainer's stay floats; experience.mismatch makes up for tokens that another policy drew."""
    exact: bool = True
    """What a sample draws does not depend on what else is drawn at the time, so that fused and serial runs
    are the same to the bit; only in float32. False: decoding is faster."""
    repeat: int = 16
    """Tokens that samples draw at most between two decisions of the engine; the same tokens whatever it is.
    More: less to decide and to send, and a tail begins so many tokens later at most."""
    tail: InterStageConfig = field(default_factory=InterStageConfig)
    """When generation and scoring overlap; needs two instances or more."""
    ignore_eos: bool = False
    """Responses are as long as allowed: for measurements."""
    refills: int = 0
    """With experience.drop_uninformative: where that leaves too few samples, draw those of further prompts,
    at most so many times (dynamic sampling, arXiv 2503.14476)."""


@dataclass(frozen=True)
class TrainRecipe:
    """How models are trained."""

    ranks: int = 2
    """Processes, each of which holds a stage of every model. With one, pipelines follow one another and
    nothing waits: the fastest for models that fit in it."""
    blocks: int = 1
    """So many times as many processes, which train on different samples (data parallel)."""
    tp: int = 1
    """So many processes in the place of each of them, which share its layers (tensor parallel)."""
    backend: Backend = Backend.GLOO
    """How they talk: gloo on CPUs, nccl where each has a GPU."""
    threads: int = 1
    """Of each rank."""
    micro_batch: int = 4
    """Samples."""
    mini_batches: int = 1
    """Optimiser steps of each epoch."""
    epochs: int = 1
    """Times that an iteration's samples are trained on."""
    shuffle: bool = True
    """Draw the samples of mini-batches by chance, the same in every run with this seed."""
    actor: OptimiserConfig = field(default_factory=lambda: OptimiserConfig(lr=1e-6))
    """The Actor's optimiser."""
    critic: OptimiserConfig = field(default_factory=lambda: OptimiserConfig(lr=1e-5))
    """The Critic's."""
    lora: LoraConfig | None = None
    """Train an adapter of the Actor and leave its weights as they are; None: train the weights."""
    critic_warmup: int = 0
    """Iterations in which the Critic alone is trained."""
    fusion: Fusion = Fusion.GREEDY
    """How the two pipelines share the ranks."""
    split_backward: bool = False
    """Compute gradients of weights apart from those of activations, where a rank would wait (zero-bubble
    schedules)."""
    recompute: bool = False
    """Keep less of each forward, and compute it again."""
    patience_s: float = 120.0
    """Longest wait of a rank for another, and longest silence of one that stands still, in seconds."""

    def __post_init__(self) -> None:
        counts = ("ranks", "blocks", "tp", "threads", "micro_batch", "mini_batches", "epochs")
        for name in counts:
            if getattr(self, name) < 1:
                raise UserError(
                    f"train.{name} must be at least 1, not {getattr(self, name)}", f"train.{name}"
                )
        if self.lora is not None and self.tp > 1:
            raise UserError("an adapter is not shared by processes: set train.tp to 1, or leave lora out")


@dataclass(frozen=True)
class CheckpointRecipe:
    """What is kept."""

    every: int = 0
    """Iterations between checkpoints; 0: only after the last one."""


@dataclass(frozen=True)
class Recipe:
    """See the module."""

    models: ModelsRecipe
    data: DataRecipe
    iterations: int = 1
    """How often samples are drawn and trained on."""
    seed: int = 0
    """Everything that is drawn follows from it."""
    rollout: RolloutRecipe = field(default_factory=RolloutRecipe)
    train: TrainRecipe = field(default_factory=TrainRecipe)
    experience: ExperienceConfig = field(default_factory=ExperienceConfig)
    """Estimator, rewards, advantages."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    """What the Actor minimises, and the temperature of rollouts."""
    value: ValueLossConfig = field(default_factory=ValueLossConfig)
    """What the Critic minimises."""
    kl: KlControlConfig = field(default_factory=lambda: KlControlConfig(coefficient=0.0))
    """Weight of the divergence in the reward."""
    checkpoint: CheckpointRecipe = field(default_factory=CheckpointRecipe)
    log: LogRecipe = field(default_factory=LogRecipe)
    """Who is told the figures besides metrics.jsonl."""

    def __post_init__(self) -> None:
        grouped = (Estimator.GRPO, Estimator.RLOO, Estimator.REINFORCE_BASELINE)
        if self.experience.estimator in grouped and self.rollout.samples < 2:
            raise UserError(f"{self.experience.estimator} compares samples: set rollout.samples to 2 or more")
        rollout = self.rollout
        if min(self.iterations, rollout.prompts, rollout.samples, rollout.max_tokens, rollout.repeat) < 1:
            raise UserError("iterations, rollout.prompts, samples, max_tokens and repeat must be at least 1")
        if self.rollout.tail.tail_share and self.rollout.tail.kept >= self.rollout.instances:
            raise UserError(
                f"rollout.tail keeps {self.rollout.tail.kept} of {self.rollout.instances} instances, so none "
                "could score: raise rollout.instances, lower tail.kept, or leave tail out"
            )
        if self.rollout.tail.tune and self.rollout.instances < 2:
            raise UserError("rollout.tail.tune needs two instances or more: raise rollout.instances")
        if self.samples // self.train.mini_batches < self.train.blocks:
            raise UserError("a mini-batch has fewer samples than train.blocks: lower one of them")
        if self.rollout.refills < 0 or (self.rollout.refills and not self.experience.drop_uninformative):
            raise UserError(
                "rollout.refills is 0 or more, and needs samples that are left out: set "
                "experience.drop_uninformative to true, or refills to 0"
            )
        if self.rollout.exact and self.rollout.dtype != "float32":
            raise UserError("there is an exact mode for float32 alone: set rollout.exact to false")
        self._check_rounded()
        if self.samples % self.train.mini_batches:
            raise UserError(
                f"{self.samples} samples do not divide into {self.train.mini_batches} mini-batches: change "
                "rollout.prompts, rollout.samples or train.mini_batches"
            )

    def _check_rounded(self) -> None:
        """Raises UserError where the generator's weights are rounded, without what that asks for."""
        if self.rollout.weights == "auto":
            return
        if self.rollout.dtype != "bfloat16" or self.rollout.exact:
            raise UserError(
                "products with weights of 8 bits take bf16: set rollout.dtype to bfloat16 and rollout.exact "
                "to false, or leave rollout.weights out",
                "rollout.weights",
            )
        if self.experience.mismatch is None:
            raise UserError(
                "a generator with weights of 8 bits is not the policy that is trained: weigh its tokens "
                "with experience.mismatch, such as {level: token, most: 2.0}, or leave rollout.weights out",
                "experience.mismatch",
            )

    @property
    def samples(self) -> int:
        """Of an iteration."""
        return self.rollout.prompts * self.rollout.samples

    @property
    def has_critic(self) -> bool:
        """Advantages come from one."""
        return self.experience.estimator is Estimator.GAE

    @property
    def reads_actor(self) -> bool:
        """Log-probabilities are needed before the one step that computes them anyway."""
        steps = self.train.epochs * self.train.mini_batches
        return steps > 1 or self.kl.coefficient > 0 or self.experience.mismatch is not None

    @property
    def has_reference(self) -> bool:
        """Something measures the divergence from it."""
        return self.kl.coefficient > 0 or self.policy.kl_coefficient > 0

    @property
    def references_base(self) -> bool:
        """The reference is the Actor with its adapter off."""
        return self.has_reference and self.train.lora is not None and self.models.reference is None


def read_recipe(path: Path) -> Recipe:
    """A recipe from a file; raises as `read_into`."""
    return read_into(path, Recipe)


def read_into(path: Path, kind: type[Told]) -> Told:
    """The fields of a YAML file as a record.

    Raises:
        NotFound: no such file.
        UserError: it is no YAML, or a field is unknown, missing or wrong; names the nearest known field.
    """
    return read_fields(read_yaml(path), kind, str(path))


def read_yaml(path: Path) -> Mapping[str, Any]:
    """The fields of a YAML file.

    Raises:
        NotFound: no such file.
        UserError: it is no YAML, or holds no fields.
    """
    if not path.is_file():
        raise NotFound(f"there is no recipe {path}: name a YAML file; recipes/ has some to begin with")
    try:
        raw = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not YAML: {error}") from error
    if not isinstance(raw, Mapping):
        raise UserError(f"{path} must hold fields, each with its value, such as `iterations: 10`")
    return raw


def read_fields(raw: Mapping[str, Any], kind: type[Told], whose: str, where: str = "") -> Told:
    """Fields as a record.

    Args:
        whose: they are, for messages: a file.
        where: they stand in it, such as `align.`; empty: on top.

    Raises:
        UserError: a field is unknown, missing or wrong; names the nearest known field.
    """
    try:
        _check_names(raw, kind, where)
        return pydantic.TypeAdapter(kind).validate_python(raw)
    except UserError as error:
        raise UserError(f"{whose}: {error}", error.param) from error
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = where + ".".join(str(part) for part in first["loc"])
        raise UserError(f"{whose}: {place}: {first['msg'].lower()}", place) from error


def _check_names(raw: Mapping[str, Any], kind: Any, where: str) -> None:
    """Raises UserError for a field that `kind` does not have."""
    known = typing.get_type_hints(kind)
    names = [each.name for each in fields(kind)]
    for name, value in raw.items():
        full = f"{where}{name}"
        if name not in names:
            raise unknown_field(where, name, names)
        nested = next((k for k in (known[name], *typing.get_args(known[name])) if is_dataclass(k)), None)
        if nested is not None and isinstance(value, Mapping):
            _check_names(value, nested, f"{full}.")


def unknown_field(where: str, name: object, known: Sequence[str]) -> UserError:
    """The error for a field that is not known; names the nearest."""
    near = difflib.get_close_matches(str(name), known, 1, 0.4)
    hint = f"did you mean {where}{near[0]}?" if near else f"known are {', '.join(known)}"
    return UserError(f"the recipe has an unknown field {where}{name}: {hint}", f"{where}{name}")
