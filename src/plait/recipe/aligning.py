"""`AlignStage`: the stage that aligns a model; its keys are the fields of a recipe of `plait align`."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plait.recipe.forecast import TRAINED, Forecast, Pace
from plait.recipe.stage import Made, Verbs
from plait.runtime.align_setup import check_alignment, forecast_bytes, model_folder, model_folders
from plait.runtime.checkpoint import FOLDER, METRICS, STATE
from plait.runtime.engine import shape_of
from plait.runtime.prompts import Prompts
from plait.runtime.recipe import Recipe, read_fields
from plait.spec.errors import UserError


@dataclass(frozen=True, slots=True)
class AlignStage:
    """See `Stage`."""

    told: Mapping[str, Any]
    recipe: Recipe
    here: Path
    """The recipe's folder."""
    verbs: Verbs
    name: str = "align"
    refines: frozenset[str] = frozenset()
    result: str = "actor"

    @staticmethod
    def read(raw: object, file: Path, verbs: Verbs) -> "AlignStage":
        """Raises UserError for a field that is unknown (names the nearest), missing or wrong."""
        if not isinstance(raw, Mapping):
            raise UserError(f"{file}: align must hold the fields of a recipe of `plait align`", "align")
        return AlignStage(dict(raw), read_fields(raw, Recipe, str(file), "align."), file.parent, verbs)

    def inputs(self, made: Made) -> dict[str, Path]:
        """See `Stage`."""
        found = {f"models.{name}": path for name, path in model_folders(self.recipe, self.here).items()}
        path, colon, _ = (self.recipe.models.reward_function or "").rpartition(":")
        found |= {"models.reward_function": self.here / path} if colon else {}
        return found | {"data.path": self.here / Path(self.recipe.data.path).expanduser()}

    def forecast(self, made: Made, pace: Pace) -> Forecast:
        """See `Stage`."""
        recipe = self.recipe
        folders, prompts, _ = check_alignment(recipe, self.here)
        models = ", ".join(folders)
        what = f"{recipe.iterations} iterations of {recipe.samples} samples with {models}"
        seconds = recipe.iterations * self._iteration_s(folders, prompts, pace)
        return Forecast(what, forecast_bytes(recipe, folders), seconds)

    def _iteration_s(self, folders: Mapping[str, Path], prompts: Prompts, pace: Pace) -> float:
        recipe, train, rollout = self.recipe, self.recipe.train, self.recipe.rollout
        shapes = {name: shape_of(folder) for name, folder in folders.items()}
        prompt = sum(len(each.tokens) for each in prompts.rows) / len(prompts.rows)
        tokens = round(recipe.samples * (prompt + rollout.max_tokens))
        rows = -(-recipe.samples // rollout.instances)
        drawn = rollout.max_tokens * pace.decode_s(shapes["actor"], rows, round(prompt) + rollout.max_tokens)
        read = sum(pace.forward_s(shape, tokens) for shape in shapes.values())
        trained = ("actor", "critic") if recipe.has_critic else ("actor",)
        steps = train.epochs * TRAINED * sum(pace.forward_s(shapes[name], tokens) for name in trained)
        return drawn + (read + steps) / min(train.ranks * train.blocks * train.tp, os.cpu_count() or 1)

    def expected(self, made: Made) -> Made:
        """See `Stage`."""
        return Made(str(model_folder(self.here, self.recipe.models.actor)), made.placement)

    def left(self, made: Made, folder: Path) -> Made:
        """See `Stage`."""
        return Made(str(folder / self.result), made.placement)

    def run(self, made: Made, folder: Path) -> Mapping[str, Any]:
        """See `Stage`."""
        begun = any((folder / FOLDER).glob(f"iteration-*/{STATE}"))
        self.verbs.align(self.recipe, self.here, folder, begun)
        figures: dict[str, Any] = json.loads((folder / METRICS).read_text().splitlines()[-1])
        return figures
