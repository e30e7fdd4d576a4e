"""Who is told the figures of an iteration besides metrics.jsonl: TensorBoard, trackio, Weights & Biases.

Their packages are not ours; a recipe that names one that is not installed is refused before anything starts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from plait.spec.errors import UserError


@dataclass(frozen=True)
class LogRecipe:
    """Who is told."""

    tensorboard: bool = False
    """Write event files to `tensorboard` in the folder of the run."""
    trackio: str | None = None
    """Project of trackio; None: it is not told."""
    wandb: str | None = None
    """Project of Weights & Biases; None: it is not told."""

    @property
    def packages(self) -> tuple[str, ...]:
        """That are needed."""
        asked = {"tensorboard": self.tensorboard, "trackio": self.trackio, "wandb": self.wandb}
        return tuple(name for name, wanted in asked.items() if wanted)


class Sink(Protocol):
    """One of them."""

    def note(self, iteration: int, figures: Mapping[str, float]) -> None:
        """Figures of an iteration, in order."""

    def close(self) -> None:
        """Nothing more comes."""


class TensorBoard:
    """Event files. See `Sink`."""

    def __init__(self, folder: Path, first: int) -> None:
        """`first`: iterations from here on count anew."""
        writer = import_module("torch.utils.tensorboard").SummaryWriter
        self._writer: Any = writer(str(folder), purge_step=first)

    def note(self, iteration: int, figures: Mapping[str, float]) -> None:
        """See `Sink`."""
        for key, value in figures.items():
            self._writer.add_scalar(key, value, iteration)

    def close(self) -> None:
        """See `Sink`."""
        self._writer.close()


class Tracker:
    """A run of trackio or Weights & Biases, which have one interface. See `Sink`."""

    def __init__(self, package: str, project: str, name: str, recipe: Mapping[str, Any]) -> None:
        """`name`: of the run; `recipe`: kept beside its figures."""
        self._package: Any = import_module(package)
        self._package.init(project=project, name=name, config=dict(recipe))

    def note(self, iteration: int, figures: Mapping[str, float]) -> None:
        """See `Sink`."""
        self._package.log(dict(figures), step=iteration)

    def close(self) -> None:
        """See `Sink`."""
        self._package.finish()


def check_sinks(config: LogRecipe) -> None:
    """Raises UserError for one whose package is not installed."""
    for package in config.packages:
        if find_spec(package) is None:
            raise UserError(
                f"log.{package} needs the package {package}: pip install {package}, or leave it out "
                "(metrics.jsonl is written anyway)",
                f"log.{package}",
            )


def open_sinks(config: LogRecipe, out: Path, first: int, recipe: Mapping[str, Any]) -> list[Sink]:
    """All that are asked for.

    Args:
        out: folder of the run, whose name is the run's.
        first: iteration that comes next.
        recipe: what the run was told.
    """
    sinks: list[Sink] = [TensorBoard(out / "tensorboard", first)] if config.tensorboard else []
    for package, project in (("trackio", config.trackio), ("wandb", config.wandb)):
        if project is not None:
            sinks.append(Tracker(package, project, out.name, recipe))
    return sinks
