"""`Run`: a story in a folder, stage by stage; what is done is not done again.

OUT/align/actor            a model that loads, with all else that `plait align` writes
OUT/compress/model         the same of `plait compress`
OUT/plan/placement.json
OUT/serve/load.json        where requests were sent
OUT/STAGE/provenance.json  where the stage's result comes from
OUT/old/STAGE-DIGEST       what stages left under other recipes; it is taken back with that recipe
"""

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from plait.recipe.forecast import Forecast, Pace
from plait.recipe.provenance import Provenance, hash_of, versions
from plait.recipe.stage import Made, Stage
from plait.recipe.story import Story
from plait.spec.errors import UserError

OLD = "old"
SHORT = 12
"""Characters of a digest in a folder's name."""


class Standing(StrEnum):
    """What a stage's folder holds."""

    DONE = "done"
    BEGUN = "goes on"
    CHANGED = "runs again"
    """Something was begun under another recipe or with other inputs."""
    NEW = "to do"


@dataclass(frozen=True, slots=True)
class Outlook:
    """Of one stage, before it runs."""

    stage: Stage
    standing: Standing
    forecast: Forecast | None
    """None: the stage is done."""


class Run:
    """See the module."""

    def __init__(self, story: Story, out: Path) -> None:
        self.story, self.out = story, out

    def outlook(self, pace: Pace) -> list[Outlook]:
        """What each stage would do. Nothing is written.

        Raises:
            UserError: a stage cannot be done; says which, and what to change.
        """
        made, parents, found, waits = Made(), dict[str, str](), [], False
        for stage in self.story.stages:
            with_inputs = None if waits else self._new(stage, made, parents)
            standing = self._standing(stage, with_inputs)
            waits = waits or standing is not Standing.DONE
            forecast = self._forecast(stage, made, pace) if standing is not Standing.DONE else None
            found.append(Outlook(stage, standing, forecast))
            if with_inputs is not None:
                parents[stage.name] = with_inputs.digest
            made = stage.expected(made) if waits else stage.left(made, self.out / stage.name)
        return found

    def go(self, say: Callable[[str], None]) -> Iterator[Path]:
        """Run what is not done, and go on where something was interrupted; gives the result of each stage
        that leaves one. `say` gets a line for people.

        Raises:
            UserError: a stage cannot be done.
            ServiceError: it failed; run again, it goes on.
        """
        made, parents = Made(), dict[str, str]()
        for stage in self.story.stages:
            folder = self.out / stage.name
            new = self._new(stage, made, parents)
            standing = self._standing(stage, new)
            if standing is Standing.CHANGED:
                standing = self._set_aside(stage, new)
            say(f"{stage.name}: {standing}")
            if standing is not Standing.DONE:
                self._do(stage, made, new)
            made, parents = stage.left(made, folder), parents | {stage.name: new.digest}
            if stage.result is not None:
                yield folder / stage.result

    def _do(self, stage: Stage, made: Made, new: Provenance) -> None:
        folder, began_s = self.out / stage.name, time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        if stage.result is None:
            stage.run(made, folder)
            return
        new.save(folder)
        metrics = stage.run(made, folder)
        new.ended(folder / stage.result, time.monotonic() - began_s, metrics).save(folder)

    def _new(self, stage: Stage, made: Made, parents: dict[str, str]) -> Provenance:
        """Of a run that begins now."""
        hashes = {name: hash_of(path) for name, path in sorted(stage.inputs(made).items())}
        return Provenance(
            stage=stage.name,
            recipe=stage.told,
            seed=int(stage.told.get("seed", 0)),
            inputs=hashes,
            parents=dict(parents),
            versions=versions(),
        )

    def _standing(self, stage: Stage, new: Provenance | None) -> Standing:
        """None: a stage before runs first, so the inputs are not known."""
        if stage.result is None:
            return Standing.NEW
        folder = self.out / stage.name
        old = Provenance.load(folder)
        if old is None:
            return Standing.NEW
        if new is None:
            return Standing.CHANGED
        if old.digest == new.digest:
            return Standing.DONE if old.holds(folder) else Standing.BEGUN
        return Standing.BEGUN if _refined(stage, old, new) else Standing.CHANGED

    def _set_aside(self, stage: Stage, new: Provenance) -> Standing:
        """Keep what another recipe left, and take back what this one had left before, if that is there."""
        folder = self.out / stage.name
        old = Provenance.load(folder)
        assert old is not None, "something was left by another recipe"
        kept = self._kept(old)
        shutil.rmtree(kept, ignore_errors=True)
        kept.parent.mkdir(exist_ok=True)
        folder.rename(kept)
        if self._kept(new).is_dir():
            self._kept(new).rename(folder)
        return self._standing(stage, new)

    def _kept(self, provenance: Provenance) -> Path:
        return self.out / OLD / f"{provenance.stage}-{provenance.digest[:SHORT]}"

    def _forecast(self, stage: Stage, made: Made, pace: Pace) -> Forecast:
        try:
            return stage.forecast(made, pace)
        except UserError as error:
            raise UserError(f"{stage.name}: {error}", error.param) from error


def _refined(stage: Stage, old: Provenance, new: Provenance) -> bool:
    """They differ in nothing but keys that the stage may change on the way."""

    def rest(told: Provenance) -> Provenance:
        recipe = {key: value for key, value in told.recipe.items() if key not in stage.refines}
        return replace(told, recipe=recipe)

    return rest(old).digest == rest(new).digest
