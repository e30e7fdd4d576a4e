"""`Stage`: one section of a recipe: what it reads, what it will take, and the verb that it runs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from plait.recipe.forecast import Forecast, Pace
from plait.runtime.recipe import Recipe

NAMES = ("align", "compress", "plan", "serve")
"""Stages in the order in which they run."""


@dataclass(frozen=True, slots=True)
class Verbs:
    """What the verbs of the command line call. All but the first make a record of what they were told, from
    their options; its `run` does it."""

    align: Callable[[Recipe, Path, Path, bool], None]
    """Recipe, its folder, the run's folder, and whether to go on from a checkpoint."""
    compress: Callable[..., Any]
    plan: Callable[..., Any]
    serve: Callable[..., Any]
    load: Callable[..., Any]
    """`plait bench serve`."""


@dataclass(frozen=True, slots=True)
class Made:
    """What the stages so far have left."""

    model: str | None = None
    """Folder or name of the newest model; before that is there, of one with its sizes."""
    placement: Path | None = None


class Stage(Protocol):
    """Of `NAMES`."""

    @property
    def name(self) -> str: ...

    @property
    def told(self) -> Mapping[str, Any]:
        """The section in JSON's types."""
        ...

    @property
    def refines(self) -> frozenset[str]:
        """Keys that may change while what was begun is gone on from."""
        ...

    @property
    def result(self) -> str | None:
        """File or folder that it leaves in its own; None: nothing, so it is never done."""
        ...

    def inputs(self, made: Made) -> dict[str, Path]:
        """Files and folders that it reads, by key."""
        ...

    def forecast(self, made: Made, pace: Pace) -> Forecast:
        """What it will take. Raises UserError for all that can be refused before it runs."""
        ...

    def expected(self, made: Made) -> Made:
        """What it will leave, before it has: a model of the same sizes stands for one that is not there."""
        ...

    def left(self, made: Made, folder: Path) -> Made:
        """What it has left in its folder."""
        ...

    def run(self, made: Made, folder: Path) -> Mapping[str, Any]:
        """Do it, or go on where it was interrupted; returns its figures."""
        ...
