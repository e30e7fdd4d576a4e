"""`CompressStage`: the stage that compresses a decoder; its keys are the options of `plait compress`.

In the place of `budget` it may have an `objective`, the options of `plait plan`: see `Objective`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plait.compression.language_compress import check_language
from plait.model.hub import resolve
from plait.recipe.forecast import TRAINED, Forecast, Pace
from plait.recipe.keys import Keys, Told
from plait.recipe.objective import Objective, Reached
from plait.recipe.stage import Made, Verbs
from plait.runtime.engine import shape_of
from plait.spec.errors import UserError

FLOAT_BYTES = 4
ANY_SHARE = 0.5
"""Of the bytes, where a check needs some budget, and which one is not known yet."""
PROBES = 15
"""Measurements before the search: two of each kind of layers, of which most have seven, and one of none."""


@dataclass(frozen=True, slots=True)
class CompressStage:
    """See `Stage`."""

    section: Told
    objective: Objective | None
    """None: the section has budgets."""
    verbs: Verbs
    name: str = "compress"
    refines: frozenset[str] = frozenset({"budget", "labels", "objective"})
    """Labels that were measured count for other budgets too."""
    result: str = "model"

    @staticmethod
    def read(raw: object, file: Path, verbs: Verbs) -> "CompressStage":
        """Raises UserError for a key that is unknown (names the nearest), missing or wrong."""
        own = {"objective": dict[str, Any]}
        told = Keys("compress", verbs.compress, ("out",), ("model", "budget"), own).read(raw, file)
        target = told.options.get("target") or "plait"
        if target == "gguf":
            raise UserError(f"{file}: compress.target is gguf, a file: use `plait compress` for it", "target")
        if ("objective" in told.options) == ("budget" in told.options):
            raise UserError(
                f"{file}: compress needs exactly one of budget and objective: name what limits the model",
                "compress.budget",
            )
        objective = None
        if "objective" in told.options:
            objective = Objective.read(told.options["objective"], file, verbs.plan)
        return CompressStage(told, objective, verbs)

    @property
    def told(self) -> Mapping[str, Any]:
        """See `Stage`."""
        return self.section.json

    def inputs(self, made: Made) -> dict[str, Path]:
        """See `Stage`."""
        found = self.section.files | {"model": resolve(self._model(made))}
        if self.objective is not None:
            found |= {f"objective.{name}": path for name, path in self.objective.told.files.items()}
        return found

    def forecast(self, made: Made, pace: Pace) -> Forecast:
        """See `Stage`."""
        if self.objective is not None:
            self.objective.check(str(resolve(self._model(made))))
        asked = self._asked(made, Path(), ANY_SHARE)
        if asked.of_images:
            raise UserError(
                "a recipe compresses decoders: use `plait compress` for image classifiers", "model"
            )
        config = asked.decoder()
        check_language(config)
        task, shape = config.task, shape_of(config.task.folder)
        labels = config.search.labels + PROBES
        tokens = labels * task.validation.tokens + 2 * task.test.tokens + TRAINED * task.calibration.tokens
        parameters, logits = shape.parameters, task.validation.tokens * shape.vocab
        memory = FLOAT_BYTES * (2 * parameters + logits)
        budgets = ", ".join(f"{name}={value:g}" for name, value in config.budgets)
        budgets = budgets if self.objective is None else "the bytes that hold the objective"
        what = f"about {labels} policies measured for {budgets}"
        return Forecast(what, memory, pace.forward_s(shape, tokens))

    def expected(self, made: Made) -> Made:
        """See `Stage`."""
        return Made(self._model(made), made.placement)

    def left(self, made: Made, folder: Path) -> Made:
        """See `Stage`."""
        return Made(str(folder / self.result), made.placement)

    def run(self, made: Made, folder: Path) -> Mapping[str, Any]:
        """See `Stage`."""
        reached = self._reached(made, folder)
        report = self._asked(made, folder, None if reached is None else reached.share).run()
        figures = {name: report[name] for name in ("policy", "test", "search", "costs", "labels", "bytes")}
        return figures if reached is None else figures | {"objective": reached.why}

    def _reached(self, made: Made, folder: Path) -> Reached | None:
        """The budget that holds the objective, where there is one; it is kept beside the labels."""
        if self.objective is None:
            return None
        source = resolve(self._model(made))
        levels = self._asked(made, folder, ANY_SHARE).decoder().task.choice.bits
        reached = self.objective.reach(str(source), shape_of(source), levels)
        reached.save(folder)
        return reached

    def _asked(self, made: Made, folder: Path, share: float | None) -> Any:
        """The verb's record. `share`: the budget of bytes, where the section has none."""
        options = {name: value for name, value in self.section.options.items() if name != "objective"}
        if self.objective is not None:
            options |= {"budget": [f"memory={share}"]}
        return self.verbs.compress(**(options | {"model": self._model(made), "out": folder}))

    def _model(self, made: Made) -> str:
        """Raises UserError where none is named, and no stage before has one."""
        model = self.section.options.get("model", made.model)
        if model is None:
            raise UserError("compress.model is missing: name a model, or put align before", "compress.model")
        return str(model)
