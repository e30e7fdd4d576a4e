"""`Part`: one stage of a transformers model, cut by the model's own plan for pipelines.

    stage 0: table, layers 0 .. a   --activations-->   stage 1: layers a + 1 .. b, norm, head

Parameters keep the names that they have in the whole model, so the parts' weights together are a checkpoint.
Layers of other stages let everything pass, so that a model that counts its layers counts them right.
"""

from collections.abc import Sequence
from enum import StrEnum
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging

from plait.model.load import load_config
from plait.model.stage import Blank, Elsewhere, stack_of
from plait.model.weights_file import files_of
from plait.spec.errors import Unsupported, UserError
from plait.training.adapter import merged
from plait.training.batch import Padded


class Head(StrEnum):
    """What a model gives for a position."""

    WORDS = "words"
    """Logits of the next token."""
    SCORE = "score"
    """One number: a value, or a score at the last token."""


class Entrance(nn.Module):
    """Stands for the last layer of the stage before: gives what that one sent."""

    def __init__(self) -> None:
        super().__init__()
        self.given: Tensor | None = None

    def forward(self, hidden_BTN: Tensor, *_: Any, **__: Any) -> Tensor:
        assert self.given is not None, "a stage received nothing"
        return self.given


def load(folder: Path, head: Head, seed: int) -> nn.Module:
    """The whole model in float32, without dropout.

    Args:
        seed: a head that the folder does not have is drawn from it.

    Raises:
        NotFound: no config.json.
        Unsupported: transformers has no such head for the model, or it needs code of its own.
        UserError: weights are missing or damaged.
    """
    load_config(folder)
    files_of(folder)
    auto = AutoModelForCausalLM if head is Head.WORDS else AutoModelForSequenceClassification
    options: dict[str, Any] = {} if head is Head.WORDS else {"num_labels": 1}
    shown = transformers_logging.is_progress_bar_enabled()
    level = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # a head that is drawn anew is no fault
    try:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            module, report = auto.from_pretrained(
                folder,
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
    except ValueError as error:
        raise Unsupported(f"{folder.name} has no head for {head.value}: {error}", "model") from error
    finally:
        transformers_logging.set_verbosity(level)
        if shown:
            transformers_logging.enable_progress_bar()
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("score."))
    if missing:
        raise UserError(f"{folder} lacks weights that config.json names: {', '.join(missing[:5])}", "model")
    return module.eval()


def even(layers: int, stages: int) -> tuple[int, ...]:
    """Layers of each stage, as equal as can be; earlier stages have one more.

    Raises:
        UserError: there are fewer layers than stages.
    """
    if layers < stages:
        raise UserError(f"{layers} layers cannot be cut into {stages} stages: use fewer stages", "stages")
    whole, rest = divmod(layers, stages)
    return tuple(whole + (stage < rest) for stage in range(stages))


def layers_of(module: nn.Module) -> int:
    """How many layers a model has. Raises Unsupported where it has no plan for pipelines."""
    return len(getattr(module.base_model, stack_of(module)))


class Part(nn.Module):
    """A stage's share of a model, as `Stage` runs it."""

    def __init__(self, module: nn.Module, head: Head, counts: Sequence[int], stage: int) -> None:
        """Take what stage number `stage` has of `module`, which is of no other use afterwards.

        Args:
            counts: layers of each stage.

        Raises:
            Unsupported: the model has no plan for pipelines.
            UserError: the counts do not add up to its layers.
        """
        super().__init__()
        base, stack = module.base_model, stack_of(module)
        layers = getattr(base, stack)
        if sum(counts) != len(layers):
            raise UserError(f"stages of {list(counts)} layers do not make up {len(layers)}", "layers")
        past = list(accumulate(counts))[stage]
        self.mine = range(past - counts[stage], past)
        self.first, self.last, self.head = stage == 0, stage == len(counts) - 1, head
        self.entrance = Entrance()
        self.width: int = module.config.hidden_size
        self.ties = head is Head.WORDS and bool(module.config.tie_word_embeddings)
        """Its table is its head as well, on the first and the last stage."""
        for i in range(len(layers)):
            if i not in self.mine:
                layers[i] = self.entrance if i == self.mine.start - 1 else Elsewhere()
        self._leave(module, stack)
        self.module = module

    def _leave(self, module: nn.Module, stack: str) -> None:
        """Let go of what stands before and after the layers, if other stages have it."""
        base = module.base_model
        names = list(module.config.base_model_pp_plan)
        at = names.index(stack)
        for name in () if self.first else names[:at]:
            part = getattr(base, name)
            if isinstance(part, nn.Embedding):
                setattr(base, name, Blank(part.embedding_dim, part.weight.dtype))
        for name in () if self.last else names[at + 1 :]:
            setattr(base, name, Elsewhere())
        if not self.last:
            top = module.get_output_embeddings() if self.head is Head.WORDS else module.score
            module.set_submodule(
                next(name for name, part in module.named_modules() if part is top), Elsewhere()
            )

    def forward(self, received_BTN: Tensor | None, batch: Padded) -> Tensor:
        """Activations [B, T, N]; of the last stage, from position `batch.kept` on, logits [B, L, V] or
        scores [B, L]."""
        self.entrance.given = received_BTN
        try:
            if self.last and self.head is Head.WORDS:
                keep_L = torch.arange(batch.kept, batch.ids_BT.shape[1])
                return self.module(input_ids=batch.ids_BT, use_cache=False, logits_to_keep=keep_L).logits
            hidden_BTN = self.module.base_model(input_ids=batch.ids_BT, use_cache=False).last_hidden_state
            return self.module.score(hidden_BTN[:, batch.kept :]).squeeze(-1) if self.last else hidden_BTN
        finally:
            self.entrance.given = None

    @property
    def tied(self) -> nn.Parameter | None:
        """The weight that the first and the last stage both hold; None where this stage has none."""
        if not self.ties or self.first == self.last:
            return None
        table = self.module.get_input_embeddings() if self.first else self.module.get_output_embeddings()
        return table.weight

    def weights(self) -> dict[str, Tensor]:
        """Its parameters with what an adapter adds, by the names of the whole model; a tied one by that of
        the table."""
        found = merged(self.module)
        if self.tied is not None and self.last:
            del found[next(name for name, p in self.module.named_parameters() if p is self.tied)]
        return found
