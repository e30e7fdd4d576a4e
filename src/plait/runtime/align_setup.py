"""`open_alignment`: from a recipe to an alignment with its parts started, or what to change."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from plait.cost.cost import Cost
from plait.cost.reading import StatedReading
from plait.model.hub import resolve
from plait.rlhf.core import RlhfCore
from plait.runtime.align import Alignment, answered
from plait.runtime.checkpoint import Checkpoints
from plait.runtime.crew import Crew, CrewConfig
from plait.runtime.engine import Engine, shape_of
from plait.runtime.fleet import FleetConfig
from plait.runtime.prompts import Prompt, Prompts
from plait.runtime.recipe import Recipe
from plait.runtime.setup import ServeConfig, open_engine
from plait.runtime.sinks import check_sinks, open_sinks
from plait.runtime.trainer import Trainer
from plait.serving.admission import AdmissionConfig
from plait.serving.batcher import BatcherConfig
from plait.serving.manager import ManagerConfig
from plait.spec.cluster import Link
from plait.spec.errors import UserError
from plait.text.tokenizer import Tokenizer
from plait.training import reward_function
from plait.training.adapter import check_installed
from plait.training.batch import Sample
from plait.training.cut import Head, even
from plait.training.device import device_of
from plait.training.orders import ModelPlan, OptimiserConfig
from plait.training.reward_function import Score

PAGE = 16
TRAINED_BYTES, FROZEN_BYTES, DRAWING_BYTES = 16, 4, 8
"""Of each parameter: weight, gradient and two moments; weight; weight and its packed copy."""


@dataclass(frozen=True)
class Pace:
    """Times of devices that are not there: what draws and reads is real, and answers come no earlier."""

    steps: Cost
    reading: StatedReading
    link: Link
    """Between instances."""

    def of(self, serving: ServeConfig) -> ServeConfig:
        """The same engine, paced."""
        return replace(serving, pace=self.steps, pace_link=self.link)


@contextlib.asynccontextmanager
async def open_alignment(
    recipe: Recipe, here: Path, out: Path, *, resume: bool = False, pace: Pace | None = None
) -> AsyncIterator[Alignment]:
    """Check everything, start an engine and a trainer, and end them afterwards.

    Args:
        here: folder of the recipe, which relative paths start from.
        out: folder of the run.
        resume: go on from its last checkpoint.
        pace: of generation and scoring; None: they take as long as they do.

    Raises:
        UserError: something cannot be used; nothing was started.
        EngineFailure: a process did not come up.
    """
    checkpoints = Checkpoints(out, recipe)
    checkpoint = checkpoints.last(resume)
    folders, prompts, score = check_alignment(recipe, here)
    crew = Crew(crew_config(recipe, folders, checkpoint))
    checkpoints.begin()
    serving = _serve_config(recipe, folders["actor"], prompts, _journal(out, checkpoints.first))
    engine = open_engine(serving if pace is None else pace.of(serving), RlhfCore)
    try:
        await _start(engine, crew)
        reading = None if pace is None else pace.reading
        sinks = open_sinks(recipe.log, out, checkpoints.first, msgspec.to_builtins(recipe))
        trainer = _trainer(recipe, crew)
        alignment = Alignment(recipe, engine, trainer, prompts, score, checkpoints, reading, sinks)
        try:
            yield alignment
        finally:
            alignment.close()
    finally:
        await asyncio.gather(engine.close(), crew.close())


def check_alignment(recipe: Recipe, here: Path) -> tuple[dict[str, Path], Prompts, Score | None]:
    """Everything that can be checked before anything is started: the models' folders, the prompts, and the
    reward function, if one scores. Raises UserError for what cannot be used."""
    check_sinks(recipe.log)
    folders = model_folders(recipe, here)
    tokenizer = Tokenizer.load(folders["actor"])
    check_tokenizers(folders)
    check_layout(recipe, folders)
    prompts = Prompts(_path(here, recipe.data.path), recipe.data, tokenizer)
    check_lengths(recipe, folders["actor"], prompts)
    check_memory(recipe, folders)
    return folders, prompts, load_score(recipe, here, prompts.rows[0], tokenizer)


def _trainer(recipe: Recipe, crew: Crew) -> Trainer:
    train, temperature = recipe.train, recipe.policy.temperature
    return Trainer(crew, train.fusion, train.micro_batch, temperature, split=train.split_backward)


async def _start(engine: Engine, crew: Crew) -> None:
    """Both at the same time; where one cannot, the other is not waited for."""
    tasks = [asyncio.create_task(engine.start()), asyncio.create_task(crew.start())]
    done, late = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    for task in late:
        task.cancel()
    await asyncio.gather(*late, return_exceptions=True)
    for task in tasks:
        if task in done:
            task.result()


def model_folders(recipe: Recipe, here: Path) -> dict[str, Path]:
    """Folder of each model that the recipe needs, by name. Raises UserError for one that is not there."""
    models, there = recipe.models, {}
    actor = model_folder(here, models.actor)
    there["actor"] = actor
    if recipe.has_reference and not recipe.references_base:
        there["reference"] = actor if models.reference is None else model_folder(here, models.reference)
    if models.reward is not None:
        there["reward"] = model_folder(here, models.reward)
    if recipe.has_critic:
        there["critic"] = (
            there.get("reward", actor) if models.critic is None else model_folder(here, models.critic)
        )
    return there


def crew_config(recipe: Recipe, folders: dict[str, Path], checkpoint: Path | None) -> CrewConfig:
    """The trainer's ranks: Actor and reference forwards, Critic and reward backwards."""
    train = recipe.train
    optimisers: dict[str, OptimiserConfig] = {"actor": train.actor, "critic": train.critic}
    plans = {
        name: plan_of(name, folder, train.ranks, optimisers.get(name), recipe.seed)
        for name, folder in folders.items()
    }
    plans["actor"] = replace(plans["actor"], lora=train.lora)
    if recipe.references_base:
        plans["reference"] = replace(plans["actor"], name="reference", optimiser=None, adapted="actor")
    return CrewConfig(
        train.ranks,
        tuple(plans.values()),
        blocks=train.blocks,
        tp=train.tp,
        backend=train.backend,
        threads=train.threads,
        patience_s=train.patience_s,
        recompute=train.recompute,
        resume=checkpoint,
    )


def plan_of(name: str, folder: Path, ranks: int, optimiser: OptimiserConfig | None, seed: int) -> ModelPlan:
    """Equal stages on all ranks. Raises UserError where there are fewer layers than ranks."""
    scores = name in ("critic", "reward")
    order = tuple(reversed(range(ranks))) if scores else tuple(range(ranks))
    layers = even(len(shape_of(folder).layers), ranks)
    head = Head.SCORE if scores else Head.WORDS
    return ModelPlan(name, str(folder), head, order, layers, optimiser, seed, zero_head=name == "critic")


def check_layout(recipe: Recipe, folders: dict[str, Path]) -> None:
    """Raises UserError where the trainer's processes cannot be had, or a model cannot be cut for them."""
    train = recipe.train
    if train.lora is not None:
        check_installed()
    device_of(train.backend, 0, train.ranks * train.tp * train.blocks)
    for name, folder in folders.items():
        layer = shape_of(folder).layers[0]
        if layer.heads % train.tp or layer.kv_heads % train.tp:
            raise UserError(
                f"{layer.heads} heads and {layer.kv_heads} of keys and values of the {name} are not shared "
                f"evenly by {train.tp} processes: set train.tp to what divides both",
                "train.tp",
            )


def check_tokenizers(folders: dict[str, Path]) -> None:
    """Raises UserError where a model counts other words than the Actor."""
    words = {name: _words(folder) for name, folder in folders.items()}
    for name, found in words.items():
        if found != words["actor"]:
            raise UserError(
                f"the {name} at {folders[name]} has another tokenizer than the Actor: token ids would mean "
                "other words; train or choose one with the Actor's tokenizer",
                f"models.{name}",
            )


def _words(folder: Path) -> object:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{folder} has no tokenizer.json: save the tokenizer beside the weights", "models")
    raw = json.loads(path.read_text())
    return raw["model"].get("vocab"), raw.get("added_tokens")


def check_lengths(recipe: Recipe, actor: Path, prompts: Prompts) -> None:
    """Raises UserError where a prompt with its response exceeds the Actor's context."""
    longest = max(len(prompt.tokens) for prompt in prompts.rows)
    limit = shape_of(actor).max_tokens
    if longest + recipe.rollout.max_tokens > limit:
        raise UserError(
            f"prompts of up to {longest} tokens and responses of {recipe.rollout.max_tokens} exceed the "
            f"Actor's context of {limit}: lower data.max_prompt_tokens or rollout.max_tokens",
            "rollout.max_tokens",
        )


def forecast_bytes(recipe: Recipe, folders: dict[str, Path]) -> int:
    """What weights, gradients and moments will take on this host, over all processes."""
    total = 0
    for name, folder in folders.items():
        parameters = shape_of(folder).parameters
        trained = name == "critic" or (name == "actor" and recipe.train.lora is None)
        each = TRAINED_BYTES if trained else FROZEN_BYTES
        total += parameters * each * recipe.train.blocks
    drawing = shape_of(folders["actor"]).parameters * DRAWING_BYTES
    return total + drawing * recipe.rollout.instances


def check_memory(recipe: Recipe, folders: dict[str, Path]) -> None:
    """Raises UserError where the forecast exceeds what is free."""
    needed, free = forecast_bytes(recipe, folders), _free_bytes()
    if needed > free:
        raise UserError(
            f"the models would take {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free: use smaller "
            "models, fewer rollout.instances, or a larger machine",
            "models",
        )


def _free_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise UserError("this system does not say how much memory is free")


def load_score(recipe: Recipe, here: Path, prompt: Prompt, tokenizer: Tokenizer) -> Score | None:
    """The reward function, tried on one sample; None where a model scores.

    Raises:
        UserError: it fails, or gives what is no finite number.
    """
    source = recipe.models.reward_function
    if source is None:
        return None
    path, colon, name = source.rpartition(":")
    score = reward_function.load(f"{_path(here, path)}:{name}" if colon else source)
    word = prompt.tokens[-1:]
    sample = Sample(0, 0, prompt.tokens, word, True)
    try:
        score([answered(sample, [prompt], tokenizer)])
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"reward function {source} fails on a sample: {type(error).__name__}: {error}; mend it, and try "
            "it by itself on one prompt and completion",
            "models.reward_function",
        ) from error
    return score


def _serve_config(recipe: Recipe, actor: Path, prompts: Prompts, journal: Path) -> ServeConfig:
    rollout = recipe.rollout
    longest = max(len(prompt.tokens) for prompt in prompts.rows) + rollout.max_tokens
    slots = rollout.kv_tokens or recipe.samples * (longest + PAGE)
    return ServeConfig(
        model=str(actor),
        threads=rollout.threads,
        dtype=rollout.dtype,
        weights=rollout.weights,
        exact=rollout.exact,
        kv_tokens=slots,
        manager=ManagerConfig(
            page=PAGE,
            admission=AdmissionConfig(max_queue=max(4096, recipe.samples)),
            batcher=BatcherConfig(repeat=rollout.repeat),
        ),
        fleet=replace(FleetConfig(), instances=rollout.instances),
        journal=journal,
    )


def _journal(out: Path, first: int) -> Path:
    """What the engine's core heard and said, from this iteration on."""
    return out / f"journal-{first:06d}.jsonl"


def _path(here: Path, given: str) -> Path:
    return here / Path(given).expanduser()


def model_folder(here: Path, given: str) -> Path:
    """Folder of a model, by its path from `here`, its alias or its hub id. Raises UserError as `resolve`."""
    local = _path(here, given)
    return local if (local / "config.json").is_file() else resolve(given)
