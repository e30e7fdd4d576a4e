"""Training a reward model from pairs of a chosen and a rejected answer, on the pipeline runtime.

The loss is Bradley and Terry's: minus the log-probability that the chosen answer wins.
"""

import contextlib
import json
import random
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plait.runtime.align import Progress
from plait.runtime.align_setup import model_folder, plan_of
from plait.runtime.crew import Crew, CrewConfig
from plait.runtime.prompts import read_rows
from plait.runtime.recipe import Fusion, read_into
from plait.runtime.rows import batched
from plait.runtime.trainer import Trainer
from plait.spec.errors import UserError
from plait.text.tokenizer import Tokenizer
from plait.training.batch import Sample
from plait.training.orders import OptimiserConfig

MODEL = "reward"


@dataclass(frozen=True)
class PairsRecipe:
    """Everything that `plait reward` is told."""

    model: str
    """Where the reward model starts: folder, hub id or alias."""
    train: str
    """JSONL of pairs, with columns `prompt`, `chosen` and `rejected`; paths are taken from the recipe's
    folder."""
    test: str | None = None
    """Pairs that are held out; None: none."""
    steps: int = 100
    """Optimiser steps."""
    pairs: int = 16
    """Of each step."""
    max_tokens: int = 512
    """Pairs with a longer side are left out."""
    test_pairs: int = 500
    """Held-out pairs that are scored, the first ones."""
    seed: int = 0
    """Order of the pairs, and the head's first weights."""
    ranks: int = 2
    """Processes, each of which holds a stage."""
    threads: int = 1
    """Of each rank."""
    micro_batch: int = 4
    """Pairs."""
    optimiser: OptimiserConfig = field(default_factory=lambda: OptimiserConfig(lr=1e-5))
    """How it is trained."""

    def __post_init__(self) -> None:
        for name in ("ranks", "steps", "pairs", "micro_batch", "max_tokens", "test_pairs"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}", name)


Pair = tuple[Sample, Sample]
"""The chosen side, and the rejected one."""


def read_pairs_recipe(path: Path) -> PairsRecipe:
    """A recipe from a file. Raises as `read_recipe`."""
    return read_into(path, PairsRecipe)


def read_pairs(path: Path, tokenizer: Tokenizer, max_tokens: int) -> list[Pair]:
    """All pairs of a file that are short enough.

    Raises:
        UserError: a row lacks a column, or none is left.
    """
    found = []
    for row in read_rows(path):
        if not row.keys() >= {"prompt", "chosen", "rejected"}:
            raise UserError(f"{path}: a row lacks one of the columns prompt, chosen, rejected", "train")
        sides = tuple(
            _side(2 * len(found) + at, row["prompt"], row[name], tokenizer)
            for at, name in enumerate(("chosen", "rejected"))
        )
        if max(side.tokens for side in sides) <= max_tokens:
            found.append((sides[0], sides[1]))
    if not found:
        raise UserError(f"{path} has no pair of at most {max_tokens} tokens: raise max_tokens", "max_tokens")
    return found


def _side(id: int, prompt: str, answer: str, tokenizer: Tokenizer) -> Sample:
    """As the policy would have written it: by the chat template where there is one."""
    if tokenizer.chat_template is None:
        start = tokenizer.encode(prompt)
    else:
        told = [{"role": "user", "content": prompt}]
        start = tokenizer.encode(tokenizer.render_chat(told, add_generation_prompt=True), False)
    end = tokenizer.eos_ids[:1]
    return Sample(id, id // 2, tuple(start), (*tokenizer.encode(answer, False), *end), True)


class RewardTraining:
    """Steps over the pairs, and figures of those held out."""

    def __init__(self, recipe: PairsRecipe, trainer: Trainer, folder: Path, here: Path, out: Path) -> None:
        """
        Args:
            trainer: holds one model, named `MODEL`, that starts from `folder`.
            here: folder of the recipe.
            out: folder of the run.
        """
        self.recipe, self.trainer, self.folder, self.out = recipe, trainer, folder, out
        tokenizer = Tokenizer.load(folder)
        self.train = read_pairs(here / recipe.train, tokenizer, recipe.max_tokens)
        held_out = recipe.test and read_pairs(here / recipe.test, tokenizer, recipe.max_tokens)
        self.test = (held_out or [])[: recipe.test_pairs]

    async def run(self, progress: Progress | None = None) -> dict[str, float]:
        """All steps; the model is then in `out/reward`. Returns the figures of the held-out pairs."""
        for step in range(self.recipe.steps):
            sides = [side for pair in self._pairs(step) for side in pair]
            figures = await self.trainer.train_pairs(MODEL, sides)
            _note(self.out / "metrics.jsonl", {"step": step, **figures})
            if progress is not None:
                progress(step, figures)
        found = await self.held_out()
        target = self.out / "reward"
        _clear(target)
        await self.trainer.export(MODEL, self.folder, target)
        _one_label(target / "config.json")
        _keep(self.out / "held_out.json", found)
        return found

    async def held_out(self) -> dict[str, float]:
        """Share of the held-out pairs whose chosen answer scores higher."""
        if not self.test:
            return {}
        scores = (await self.trainer.read([MODEL], [side for pair in self.test for side in pair]))[MODEL]
        right = sum(chosen > rejected for chosen, rejected in batched([row[0] for row in scores], 2))
        return {"accuracy": right / len(self.test), "pairs": len(self.test)}

    def _pairs(self, step: int) -> Sequence[Pair]:
        """Passes over all pairs, each in another order."""
        found: list[Pair] = []
        at = step * self.recipe.pairs
        while len(found) < self.recipe.pairs:
            turn, place = divmod(at + len(found), len(self.train))
            order = list(self.train)
            random.Random(f"{self.recipe.seed}|{turn}").shuffle(order)
            found.extend(order[place : place + self.recipe.pairs - len(found)])
        return found


@contextlib.asynccontextmanager
async def open_reward_training(recipe: PairsRecipe, here: Path, out: Path) -> AsyncIterator[RewardTraining]:
    """Check everything, start the ranks, and end them afterwards. Raises as `open_alignment`."""
    folder = model_folder(here, recipe.model)
    plan = plan_of(MODEL, folder, recipe.ranks, recipe.optimiser, recipe.seed)
    crew = Crew(CrewConfig(recipe.ranks, (plan,), threads=recipe.threads))
    training = RewardTraining(recipe, Trainer(crew, Fusion.OFF, recipe.micro_batch, 1.0), folder, here, out)
    _make(out)
    try:
        await crew.start()
        yield training
    finally:
        await crew.close()


def _make(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "metrics.jsonl").write_text("")


def _note(path: Path, figures: Mapping[str, float]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(figures) + "\n")


def _clear(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _keep(path: Path, figures: Mapping[str, float]) -> None:
    path.write_text(json.dumps(figures))


def _one_label(path: Path) -> None:
    """Say in config.json that the model gives one number."""
    config: dict[str, Any] = json.loads(path.read_text())
    config |= {"num_labels": 1, "id2label": {"0": "score"}, "label2id": {"score": 0}}
    kinds = config.get("architectures") or []
    config["architectures"] = [kind.replace("ForCausalLM", "ForSequenceClassification") for kind in kinds]
    path.write_text(json.dumps(config, indent=2))
