"""`Checkpoints`: the folder of a run, from which it can go on as if it had not stopped.

metrics.jsonl                           a line for each iteration, before its checkpoint
checkpoints/iteration-000002/           appears whole or not at all
    state.json, a file of weights and one of moments for each process
"""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from plait.model.weights_file import writing
from plait.runtime.recipe import Recipe
from plait.spec.errors import UserError

FOLDER, STATE, METRICS = "checkpoints", "state.json", "metrics.jsonl"


@dataclass(frozen=True)
class State:
    """What a checkpoint holds besides weights and moments."""

    iteration: int
    """The next one."""
    kl_coefficient: float
    turn: int
    """How often prompts were taken from the data set."""


@dataclass(frozen=True)
class Layout:
    """How the weights are divided: a checkpoint can be read by equal processes alone."""

    ranks: int
    tp: int
    lora_rank: int
    """0: the weights themselves are trained."""

    @staticmethod
    def of(recipe: Recipe) -> "Layout":
        """That a recipe asks for."""
        train = recipe.train
        return Layout(train.ranks, train.tp, 0 if train.lora is None else train.lora.rank)

    def __str__(self) -> str:
        return f"train.ranks {self.ranks}, train.tp {self.tp}, train.lora.rank {self.lora_rank or 'absent'}"


class Checkpoints:
    """See the module."""

    def __init__(self, out: Path, recipe: Recipe) -> None:
        self.out, self._layout = out, Layout.of(recipe)
        self.state: State | None = None
        """Of the checkpoint that is gone on from; None: the run is fresh."""

    @property
    def first(self) -> int:
        """The iteration that the run begins with."""
        return 0 if self.state is None else self.state.iteration

    def last(self, resume: bool) -> Path | None:
        """The checkpoint that the run goes on from, whose state is taken; None where it begins afresh.

        Raises:
            UserError: there is none to resume from, or it was written by processes that divided the weights
                in another way; or another run left some, which a fresh run's could be taken for.
        """
        found = sorted((self.out / FOLDER).glob(f"iteration-*/{STATE}"))
        if not resume and found:
            raise UserError(
                f"{self.out} holds checkpoints of another run: go on from them with --resume, remove "
                "them, or give another --out",
                "out",
            )
        if not resume:
            return None
        if not found:
            raise UserError(f"{self.out} holds no checkpoint: start without --resume", "resume")
        told = json.loads(found[-1].read_text())
        layout = Layout(**told["layout"])
        if layout != self._layout:
            raise UserError(
                f"the checkpoint {found[-1].parent.name} was written with {layout}, and the recipe has "
                f"{self._layout}: give them their old values, or start without --resume",
                "resume",
            )
        self.state = State(**told["state"])
        return found[-1].parent

    def begin(self) -> None:
        """Make the folder; metrics of iterations that will be run again go, also half a line of them.

        Raises:
            UserError: it cannot be written to.
        """
        with writing(self.out):
            self._begin()

    def _begin(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        metrics = self.out / METRICS
        rows: list[str] = []
        if self.state is not None and metrics.is_file():
            lines = [line for line in metrics.read_text().splitlines(keepends=True) if line.endswith("\n")]
            rows = [line for line in lines if json.loads(line)["iteration"] < self.first]
        partial = metrics.with_name(f".{METRICS}.partial")
        partial.write_text("".join(rows))
        partial.replace(metrics)

    def note(self, iteration: int, figures: dict[str, Any]) -> None:
        """A line of metrics, in one piece; JSON has no NaN. Raises UserError where it cannot be written."""
        told = {key: value if value == value else None for key, value in sorted(figures.items())}
        path = self.out / METRICS
        with writing(path), path.open("a") as file:
            file.write(json.dumps({"iteration": iteration, **told}) + "\n")

    def partial(self, state: State) -> Path:
        """A folder to write the weights of a state to, which counts once it is kept."""
        folder = self.out / FOLDER / f".iteration-{state.iteration:06d}.partial"
        shutil.rmtree(folder, ignore_errors=True)
        return folder

    def keep(self, partial: Path, state: State, files: dict[str, str]) -> None:
        """It is whole: `files` are checksums by file. Raises UserError where its state cannot be written."""
        told = {"state": asdict(state), "layout": asdict(self._layout), "files": files}
        folder = self.out / FOLDER / f"iteration-{state.iteration:06d}"
        with writing(folder):
            (partial / STATE).write_text(json.dumps(told, indent=2))
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
