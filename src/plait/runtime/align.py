"""`Alignment`: PPO, GRPO and their relatives, iteration by iteration, on an engine and a trainer.

    prompts --> engine draws --> models read, rewards --> advantages --> trainer --> new weights --> engine

In the last mini-batch of an iteration Actor and Critic are fused as in the others, and then the weights go;
or the Actor goes first, and the engine loads its weights while the Critic trains: whichever ends sooner by
the times of the iteration before.
Samples are ordered by id, never by when they end; every draw follows from (seed, iteration, sample). So equal
recipes give equal weights, whatever the schedule, and a run that is resumed goes on as if it had not stopped.
"""

import asyncio
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from plait.cost.reading import StatedReading
from plait.runtime.checkpoint import Checkpoints, State
from plait.runtime.engine import Engine
from plait.runtime.prompts import Prompt, Prompts
from plait.runtime.recipe import Recipe
from plait.runtime.rollouts import Rollouts
from plait.runtime.sinks import Sink
from plait.runtime.trainer import Trainer
from plait.spec.errors import EngineFailure
from plait.text.tokenizer import Tokenizer
from plait.training.batch import Sample
from plait.training.experience import Judged, experiences, teaching
from plait.training.kl_control import next_coefficient
from plait.training.orders import Experience, Rows
from plait.training.reward_function import Answered, Score

GENERATOR_GAP = 0.01
"""Nats that a token's log-probability may differ between generator and trainer, both in float32."""
FIRST_RATIO = 1e-3
"""How far the mean ratio may be from 1 before the first step on a batch."""
Progress = Callable[[int, Mapping[str, float]], None]
"""Called after each iteration with its number and figures."""


class Alignment:
    """See the module. All parts are started."""

    def __init__(
        self,
        recipe: Recipe,
        engine: Engine,
        trainer: Trainer,
        prompts: Prompts,
        score: Score | None,
        checkpoints: Checkpoints,
        pace: StatedReading | None = None,
        sinks: Sequence[Sink] = (),
    ) -> None:
        """
        Args:
            score: the reward function; None: the reward model scores.
            checkpoints: in the folder of the run, with the state that the trainer was resumed from.
            pace: of a paced engine: what scoring takes at least.
            sinks: who else is told the figures.
        """
        self.recipe, self.engine, self.trainer, self.prompts = recipe, engine, trainer, prompts
        self.score, self.checkpoints, self.sinks = score, checkpoints, tuple(sinks)
        self.state = checkpoints.state or State(0, recipe.kl.coefficient, 0)
        models = ["actor"] * recipe.reads_actor
        models += ["reference"] * recipe.has_reference + ["critic"] * recipe.has_critic
        models += ["reward"] * (score is None)
        self.rollouts = Rollouts(engine, trainer, recipe, models, pace)
        self._handed_s = 0.0
        """What handing over the weights took last time."""
        self._exports = exports()

    async def run(self, progress: Progress | None = None) -> None:
        """All iterations that are left; then the aligned model is in `out/actor`, and in `out/adapter` the
        adapter where one was trained.

        Raises:
            UserError: rewards cannot be learned from; says why.
            EngineFailure: a process is gone; the last checkpoint can be resumed from.
        """
        if self.state.iteration:
            await self._publish(self.state.iteration)
        while self.state.iteration < self.recipe.iterations:
            iteration = self.state.iteration
            figures, turn = await self._iterate(iteration)
            coefficient = next_coefficient(
                self.state.kl_coefficient, figures["kl"], self.recipe.samples, self.recipe.kl
            )
            self.state = State(iteration + 1, coefficient, turn)
            self.checkpoints.note(iteration, figures)
            every = self.recipe.checkpoint.every
            if self.state.iteration == self.recipe.iterations or (every and not self.state.iteration % every):
                await self._save()
            for sink in self.sinks:
                sink.note(iteration, figures)
            if progress is not None:
                progress(iteration, figures)
        self.trainer.timeline.save(self.checkpoints.out / "timeline.json")
        await self._finish()

    def close(self) -> None:
        """Remove the weights that were handed over, and tell the sinks that nothing more comes."""
        self._exports.cleanup()
        for sink in self.sinks:
            sink.close()

    async def _iterate(self, iteration: int) -> tuple[dict[str, float], int]:
        """Figures, and the turn of the next prompts."""
        judged, turn, seconds = await self._sample()
        read_s = time.monotonic()
        made, figures = experiences(judged, self.recipe.experience, self.state.kl_coefficient)
        figures |= {"rounds": float(turn - self.state.turn)}
        trained, trained_s = await self._train(iteration, made[: self.recipe.samples])
        figures |= trained | seconds
        figures |= {
            "seconds/training": trained_s - read_s,
            "seconds/weights": max(0.0, time.monotonic() - trained_s),
            "kl_coefficient": self.state.kl_coefficient,
        }
        return figures, turn

    async def _sample(self) -> tuple[list[Judged], int, dict[str, float]]:
        """All samples of an iteration, the turn of the next prompts, and what it took. Where groups that
        teach nothing are left out, further prompts are drawn until there are enough of the others."""
        recipe, turn, judged = self.recipe, self.state.turn, list[Judged]()
        seconds = {"seconds/generation": 0.0, "seconds/reading": 0.0}
        while True:
            began_s = time.monotonic()
            prompts = self.prompts.of(turn, recipe.rollout.prompts, recipe.seed)
            samples, found = await self.rollouts.draw(turn, prompts)
            drawn_s = self.rollouts.drawn_s
            new = self._judge(samples, found, prompts)
            first = len(judged)
            judged += [numbered(each, first, first // recipe.rollout.samples) for each in new]
            seconds["seconds/generation"] += drawn_s - began_s
            seconds["seconds/reading"] += time.monotonic() - drawn_s
            turn += 1
            if turn - self.state.turn > recipe.rollout.refills:
                return judged, turn, seconds
            if sum(teaching(judged, recipe.experience)) >= recipe.samples:
                return judged, turn, seconds

    def _check_generator(self, first: Mapping[str, float]) -> None:
        """Raises EngineFailure where the generator is not the policy that was trained first."""
        apart = first.get("actor/drawn_gap", 0.0)
        if self.recipe.rollout.dtype == "float32" and apart > GENERATOR_GAP:
            raise EngineFailure(
                f"the generator's log-probabilities are up to {apart:.2g} nats from the trainer's: its "
                f"weights (version {self.engine.version}) are not those that are trained"
            )

    def _judge(
        self, samples: Sequence[Sample], found: Mapping[str, Rows], prompts: Sequence[Prompt]
    ) -> list[Judged]:
        if self.score is None:
            scores = [row[0] for row in found["reward"]]
        else:
            scores = self.score([answered(each, prompts, self.engine.tokenizer) for each in samples])
        empty = ((),) * len(samples)
        columns = (found.get("actor", empty), found.get("reference", empty), found.get("critic", empty))
        return [
            Judged(sample, score, *row) for sample, score, *row in zip(samples, scores, *columns, strict=True)
        ]

    async def _train(self, iteration: int, made: Sequence[Experience]) -> tuple[dict[str, float], float]:
        """All steps, and the new weights handed over; figures, and when the last step had ended."""
        recipe, config = self.recipe, self.recipe.train
        models = ["critic"] * recipe.has_critic
        if not (recipe.has_critic and iteration < config.critic_warmup):
            models.insert(0, "actor")
        *parts, last = [
            rows
            for epoch in range(config.epochs)
            for rows in mini_batches(made, config.mini_batches, self._shuffle(iteration, epoch))
        ]
        steps = [await self._step(models, rows) for rows in parts]
        final, trained_s = await self._last_step(models, last, iteration + 1)
        steps.append(final)
        self._check_generator(steps[0])
        first = steps[0].get("actor/ratio_mean", 1.0)
        if abs(first - 1) > FIRST_RATIO:
            raise EngineFailure(
                f"the ratio before the first step is {first:.6f}, not 1: what was read of the Actor is not "
                "what is trained"
            )
        means = {key: sum(step[key] for step in steps) / len(steps) for key in steps[0]}
        if "actor/drawn_gap" in means:
            means["rollout_gap"] = steps[0]["actor/drawn_gap"]
            del means["actor/drawn_gap"]
        return means | {"actor/first_ratio": first}, trained_s

    async def _step(self, models: Sequence[str], rows: Sequence[Experience]) -> dict[str, float]:
        return await self.trainer.train(models, rows, self.recipe.policy, self.recipe.value)

    async def _last_step(
        self, models: Sequence[str], rows: Sequence[Experience], version: int
    ) -> tuple[dict[str, float], float]:
        """The step after which the Actor's weights are this version; see the module. The figures do not
        depend on the way."""
        both = len(models) > 1
        if not (both and self.trainer.is_shorter_apart(len(rows), self._handed_s)):
            figures, trained_s = await self._step(models, rows), time.monotonic()
            await self._publish(version)
            return figures, trained_s
        figures = await self._step(["actor"], rows)
        load = asyncio.create_task(self._load(version, *await self._export(version)))
        try:
            figures |= await self._step(["critic"], rows)
            trained_s = time.monotonic()
        finally:
            await load
        return figures, trained_s

    def _shuffle(self, iteration: int, epoch: int) -> random.Random | None:
        if not self.recipe.train.shuffle:
            return None
        return random.Random(f"{self.recipe.seed}|{iteration}|{epoch}")

    async def _publish(self, version: int) -> None:
        """Give the engine the Actor's weights."""
        began_s = time.monotonic()
        await self._load(version, *await self._export(version))
        self._handed_s = time.monotonic() - began_s

    async def _export(self, version: int) -> tuple[Path, dict[str, str]]:
        folder = Path(self._exports.name) / f"v{version}"
        return folder, await self.trainer.export("actor", self.engine.config.folder, folder)

    async def _load(self, version: int, folder: Path, files: Mapping[str, str]) -> None:
        await self.engine.load(version, folder, files)
        self._forget(folder)

    def _forget(self, kept: Path) -> None:
        for old in kept.parent.iterdir():
            if old != kept:
                shutil.rmtree(old)

    async def _save(self) -> None:
        partial = self.checkpoints.partial(self.state)
        self.checkpoints.keep(partial, self.state, await self.trainer.save(partial))

    async def _finish(self) -> None:
        folder = self.checkpoints.out / "actor"
        shutil.rmtree(folder, ignore_errors=True)
        await self.trainer.export("actor", self.engine.config.folder, folder)
        lora = self.recipe.train.lora
        if lora is not None:
            adapter = self.checkpoints.out / "adapter"
            shutil.rmtree(adapter, ignore_errors=True)
            await self.trainer.export_adapter("actor", self.engine.config.folder, lora, adapter)


def answered(sample: Sample, prompts: Sequence[Prompt], tokenizer: Tokenizer) -> Answered:
    """A sample as reward functions see it."""
    prompt = prompts[sample.group]
    text = tokenizer.decode(sample.response, skip_special_tokens=True)
    talks = not isinstance(prompt.given, str)
    completion: Any = [{"role": "assistant", "content": text}] if talks else text
    return Answered(prompt.given, completion, sample.response, prompt.columns)


def numbered(judged: Judged, samples: int, groups: int) -> Judged:
    """The same with numbers that follow those of so many samples and groups before."""
    sample = replace(judged.sample, id=judged.sample.id + samples, group=judged.sample.group + groups)
    return replace(judged, sample=sample)


def exports() -> tempfile.TemporaryDirectory[str]:
    """A folder for weights on their way, in memory where that can be; those of runs that were killed go."""
    shared = Path("/dev/shm")
    if not shared.is_dir():
        return tempfile.TemporaryDirectory(prefix="plait-weights-")
    for left in shared.glob("plait-weights-*-*"):
        pid = left.name.split("-")[2]
        if left.stat().st_uid == os.getuid() and not Path("/proc", pid).exists():
            shutil.rmtree(left, ignore_errors=True)  # another run may be at it as well
    return tempfile.TemporaryDirectory(prefix=f"plait-weights-{os.getpid()}-", dir=shared)


def mini_batches(
    rows: Sequence[Experience], count: int, dice: random.Random | None
) -> list[list[Experience]]:
    """The rows in so many parts of equal size, the last with what is left over; each in the order of ids."""
    order = list(range(len(rows)))
    if dice is not None:
        dice.shuffle(order)
    size = max(1, len(rows) // count)
    parts = [order[at * size : (at + 1) * size] for at in range(count - 1)] + [order[(count - 1) * size :]]
    return [[rows[i] for i in sorted(part)] for part in parts if part]
