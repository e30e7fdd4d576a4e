"""`Story`: a recipe of several stages, read from one YAML file and checked before any work starts.

    align:      fields of a recipe of `plait align`
    compress:   options of `plait compress`
    plan:       options of `plait plan`
    serve:      options of `plait serve`; requests: N and load: options of `plait bench serve`

Any of them, in this order. A stage's model is what the stage before it left, unless it names one. Paths start
from the recipe's folder.
"""

from dataclasses import dataclass
from pathlib import Path

from plait.recipe.aligning import AlignStage
from plait.recipe.compressing import CompressStage
from plait.recipe.planning import PlanStage
from plait.recipe.serving import ServeStage
from plait.recipe.stage import NAMES, Stage, Verbs
from plait.runtime.recipe import read_yaml, unknown_field
from plait.spec.errors import UserError

KINDS = {"align": AlignStage, "compress": CompressStage, "plan": PlanStage, "serve": ServeStage}


@dataclass(frozen=True, slots=True)
class Story:
    """See the module."""

    file: Path
    stages: tuple[Stage, ...]

    def until(self, name: str | None) -> "Story":
        """The stages up to this one; None: all. Raises UserError: there is no such stage."""
        if name is None:
            return self
        names = [stage.name for stage in self.stages]
        if name not in names:
            raise UserError(f"{self.file} has no stage {name}: it has {', '.join(names)}", "until")
        return Story(self.file, self.stages[: names.index(name) + 1])


def read_story(file: Path, verbs: Verbs) -> Story:
    """Read a recipe.

    Raises:
        NotFound: no such file.
        UserError: it has no stages or has them in another order, or a key is unknown (names the nearest),
            missing or wrong.
    """
    raw = read_yaml(file)
    for name in raw:
        if name not in NAMES:
            raise unknown_field("", name, NAMES)
    given, ordered = list(raw), [name for name in NAMES if name in raw]
    if not given:
        raise UserError(f"{file} has no stages: give it any of {', '.join(NAMES)}")
    if given != ordered:
        raise UserError(f"{file}: stages run as {', '.join(ordered)}: write them in this order", given[0])
    return Story(file, tuple(KINDS[name].read(raw[name] or {}, file, verbs) for name in ordered))
