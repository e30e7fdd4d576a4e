"""`PlanStage`: the stage that chooses a placement; its keys are the options of `plait plan`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plait.planner.race import Entry
from plait.recipe.forecast import Forecast, Pace
from plait.recipe.keys import Keys, Told
from plait.recipe.stage import Made, Verbs
from plait.spec.errors import UserError


@dataclass(frozen=True, slots=True)
class PlanStage:
    """See `Stage`."""

    section: Told
    verbs: Verbs
    name: str = "plan"
    refines: frozenset[str] = frozenset()
    result: str = "placement.json"

    @staticmethod
    def read(raw: object, file: Path, verbs: Verbs) -> "PlanStage":
        """Raises UserError for a key that is unknown (names the nearest), missing or wrong."""
        return PlanStage(Keys("plan", verbs.plan, ("out",), ("model",)).read(raw, file), verbs)

    @property
    def told(self) -> Mapping[str, Any]:
        """See `Stage`."""
        return self.section.json

    def inputs(self, made: Made) -> dict[str, Path]:
        """See `Stage`; of the model the sizes alone."""
        sizes = Path(self._model(made)) / "config.json"
        found = {name: path for name, path in self.section.files.items() if name != "model"}
        return found | ({"model": sizes} if sizes.is_file() else {})

    def forecast(self, made: Made, pace: Pace) -> Forecast:
        """See `Stage`."""
        asked = self._asked(made, Path())
        longest = max(row.prompt_tokens + row.output_tokens for row in asked.trace)
        candidates, there = asked.search().able(longest), asked.plans.cluster
        devices = f"{there.devices} x {there.device.name}"
        return Forecast(f"{len(candidates)} placements on {devices} for {asked.rate_hz:g} requests/s")

    def expected(self, made: Made) -> Made:
        """See `Stage`."""
        return Made(self._served(made), None)

    def left(self, made: Made, folder: Path) -> Made:
        """See `Stage`."""
        return Made(self._served(made), folder / self.result)

    def run(self, made: Made, folder: Path) -> Mapping[str, Any]:
        """See `Stage`."""
        outcome = self._asked(made, folder).run()
        best = outcome.best
        chosen = {"candidate": str(best.candidate), "kind": best.candidate.kind, "devices": best.devices}
        chosen |= {"requests_per_device_s": best.per_device, "why": outcome.reason()}
        fates = {fate.value: count for fate, count in outcome.fates.items()}
        return chosen | {"table": [_row(each) for each in outcome.entries], "fates": fates}

    def _asked(self, made: Made, folder: Path) -> Any:
        told = {"model": self._model(made), "out": folder / self.result}
        return self.verbs.plan(**(self.section.options | told))

    def _model(self, made: Made) -> str:
        """Raises UserError where none is named, and no stage before has one."""
        model = self.section.options.get("model", made.model)
        if model is None:
            raise UserError("plan.model is missing: name a model, or put a stage before it", "plan.model")
        return str(model)

    def _served(self, made: Made) -> str | None:
        """What is served next: the model of a stage before, else the planned one where it is a folder."""
        named = self._model(made)
        return made.model or (named if (Path(named) / "config.json").is_file() else None)


def _row(entry: Entry) -> dict[str, Any]:
    """A finalist, for provenance."""
    size = entry.candidate.devices
    return {
        "candidate": str(entry.candidate),
        "kind": entry.candidate.kind,
        "per_device": entry.per_device,
        "interval": [entry.low_hz / size, entry.high_hz / size],
        "copies": entry.copies,
        "devices": entry.devices,
    }
