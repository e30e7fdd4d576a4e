"""`CompressStage`: the stage that compresses a decoder; its keys are the options of `plait compress`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plait.compression.language_compress import check_language
from plait.model.hub import resolve
from plait.recipe.forecast import TRAINED, Forecast, Pace
from plait.recipe.keys import Keys, Told
from plait.recipe.stage import Made, Verbs
from plait.runtime.engine import shape_of
from plait.spec.errors import UserError

FLOAT_BYTES = 4
PROBES = 15
"""Measurements before the search: two of each kind of layers, of which most have seven, and one of none."""


@dataclass(frozen=True, slots=True)
class CompressStage:
    """See `Stage`."""

    section: Told
    verbs: Verbs
    name: str = "compress"
    refines: frozenset[str] = frozenset({"budget", "labels"})
    """Labels that were measured count for other budgets too."""
    result: str = "model"

    @staticmethod
    def read(raw: object, file: Path, verbs: Verbs) -> "CompressStage":
        """Raises UserError for a key that is unknown (names the nearest), missing or wrong."""
        told = Keys("compress", verbs.compress, ("out",), ("model",)).read(raw, file)
        target = told.options.get("target") or "plait"
        if target == "gguf":
            raise UserError(f"{file}: compress.target is gguf, a file: use `plait compress` for it", "target")
        return CompressStage(told, verbs)

    @property
    def told(self) -> Mapping[str, Any]:
        """See `Stage`."""
        return self.section.json

    def inputs(self, made: Made) -> dict[str, Path]:
        """See `Stage`."""
        return self.section.files | {"model": resolve(self._model(made))}

    def forecast(self, made: Made, pace: Pace) -> Forecast:
        """See `Stage`."""
        asked = self._asked(made, Path())
        if asked.of_images:
            raise UserError(
                "a recipe compresses decoders: use `plait compress` for image classifiers", "model"
            )
        config = asked.decoder()
        check_language(config)
        task, shape = config.task, shape_of(config.task.folder)
        labels = config.search.labels + PROBES
        tokens = labels * task.validation.tokens + 2 * task.test.tokens + TRAINED * task.calibration.tokens
        parameters, logits = shape.weight_bytes // 2, task.validation.tokens * shape.vocab
        memory = FLOAT_BYTES * (2 * parameters + logits)
        budgets = ", ".join(f"{name}={value:g}" for name, value in config.budgets)
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
        report = self._asked(made, folder).run()
        return {name: report[name] for name in ("policy", "test", "search", "costs", "labels", "bytes")}

    def _asked(self, made: Made, folder: Path) -> Any:
        return self.verbs.compress(**(self.section.options | {"model": self._model(made), "out": folder}))

    def _model(self, made: Made) -> str:
        """Raises UserError where none is named, and no stage before has one."""
        model = self.section.options.get("model", made.model)
        if model is None:
            raise UserError("compress.model is missing: name a model, or put align before", "compress.model")
        return str(model)
