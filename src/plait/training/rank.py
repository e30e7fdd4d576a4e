"""`TrainingRank`: one process of the trainer. It holds its stages of all models and carries out orders."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from plait.model import weights_file
from plait.spec.schedule import Program
from plait.training.aggregate import Whole
from plait.training.batch import Padded
from plait.training.cut import Head, Part, load
from plait.training.objectives import Pairs, Policy, PolicyBatch, ValueBatch, Values
from plait.training.optimiser import Optimiser
from plait.training.orders import (
    Experience,
    Export,
    Found,
    ModelPlan,
    RankConfig,
    Read,
    Reply,
    Rows,
    Save,
    Train,
    Trained,
    TrainPairs,
    Written,
)
from plait.training.pipeline import Pipeline, Ran
from plait.training.post import Post, PostConfig
from plait.training.readings import Reading
from plait.training.replicas import Replicas, Shared
from plait.training.stage import Feed, Stage


class TrainingRank:
    """Carries out orders; all ranks get the same ones in the same order."""

    def __init__(self, config: RankConfig) -> None:
        """Meet the other ranks and load.

        Raises:
            PlaitError: a model cannot be used so; says why.
            RuntimeError: the others do not come.
        """
        self.config, self._patience = config, timedelta(seconds=config.patience_s)
        dist.init_process_group(
            "gloo",
            init_method=f"file://{config.meeting}",
            rank=config.rank,
            world_size=config.ranks,
            timeout=self._patience,
        )
        self._block, self._place = divmod(config.rank, config.block)
        self._blocks = range(config.ranks // config.block)
        group = self._groups([list(range(config.block))])[0]
        self._post = Post(PostConfig(patience_s=config.patience_s), group)
        self.stages: dict[tuple[str, int], Stage] = {}
        self.parts: dict[tuple[str, int], Part] = {}
        self._replicas: dict[tuple[str, int], Replicas] = {}
        self._optimisers: dict[str, Optimiser] = {}
        self._plans = {plan.name: plan for plan in config.models}
        for plan in config.models:
            self._hold(plan)
        if config.resume is not None:
            self._restore(Path(config.resume))
        self._carry_out: dict[type, Callable[[Any], Reply]] = {
            Read: self._read,
            Train: self._train,
            TrainPairs: self._train_pairs,
            Export: self._export,
            Save: self._save,
        }

    def carry_out(self, order: Any) -> Reply:
        """Raises PipelineFault or RuntimeError where another rank is gone."""
        return self._carry_out[type(order)](order)

    @property
    def weight_bytes(self) -> int:
        """That its stages hold."""
        weights = (weight for part in self.parts.values() for weight in part.parameters())
        return sum(weight.nbytes for weight in weights)

    # ---- models ----------------------------------------------------------------------------------

    def _groups(self, places: Sequence[Sequence[int]]) -> list[dist.ProcessGroup]:
        """For each list of places the group of them in this block; all ranks make those of all blocks."""
        mine = []
        for each in places:
            for block in self._blocks:
                ranks = sorted(block * self.config.block + place for place in each)
                group = dist.new_group(ranks, timeout=self._patience)
                if block == self._block:
                    mine.append(group)
        return mine

    def _across(self, places: set[int]) -> dist.ProcessGroup:
        """The group of these places in all blocks."""
        ranks = sorted(block * self.config.block + place for block in self._blocks for place in places)
        return dist.new_group(ranks, timeout=self._patience)

    def _hold(self, plan: ModelPlan) -> None:
        (all_of_it,) = self._groups([plan.ranks])
        ends = self._across({plan.ranks[0], plan.ranks[-1]})
        alike = [self._across({place}) for place in plan.ranks]
        if self._place not in plan.ranks:
            return
        stage = plan.ranks.index(self._place)
        module = load(Path(plan.folder), plan.head, plan.seed)
        if plan.zero_head and plan.head is Head.SCORE:
            torch.nn.init.zeros_(module.score.weight)
        part = Part(module, plan.head, plan.layers, stage)
        part.requires_grad_(plan.optimiser is not None)
        recompute = self.config.recompute
        self.parts[plan.name, stage] = part
        self.stages[plan.name, stage] = Stage(part, first=part.first, last=part.last, recompute=recompute)
        if plan.optimiser is None:
            return
        tied = part.tied
        named = dict(part.module.named_parameters())
        shared = [] if tied is None else [Shared((tied,), ends)]
        if len(self._blocks) > 1:
            others = tuple(weight for weight in named.values() if weight is not tied)
            shared.append(Shared(others, alike[stage]))
        self._replicas[plan.name, stage] = Replicas(shared, self.config.patience_s)
        twice = tied if part.last else None
        self._optimisers[plan.name] = Optimiser(plan.optimiser, named, twice, all_of_it)

    def _run(self, program: Program, models: Sequence[str], feeds: Sequence[Feed]) -> list[Ran]:
        numbers = {name: number for number, name in enumerate(models)}
        stages = {(numbers[n], s): stage for (n, s), stage in self.stages.items() if n in numbers}
        replicas = {(numbers[n], s): each for (n, s), each in self._replicas.items() if n in numbers}
        depths = [len(self._plans[name].ranks) for name in models]
        return Pipeline(stages, depths, self._post, replicas).run(program, feeds)

    def _width(self, name: str) -> int:
        """Of a model's activations; any, where this rank has no stage of it and so no message."""
        return next((part.width for (n, _), part in self.parts.items() if n == name), 0)

    def _ends_here(self, name: str) -> bool:
        return self._plans[name].ranks[-1] == self._place

    # ---- orders ----------------------------------------------------------------------------------

    def _read(self, order: Read) -> Found:
        batches = [Padded.of(samples) for samples in order.micro_batches]
        readings = [
            Reading(want, batches, self._width(name), order.temperature)
            for name, want in zip(order.models, order.wants, strict=True)
        ]
        ran = self._run(order.program, order.models, readings)
        found = {
            name: tuple(_rows(reading.found[number], batch.mask_BR) for number, batch in enumerate(batches))
            for name, reading in zip(order.models, readings, strict=True)
            if self._ends_here(name)
        }
        return Found(found, tuple(ran))

    def _train(self, order: Train) -> Trained:
        batches = [Padded.of([each.sample for each in row]) for row in order.micro_batches]
        whole = Whole(order.tokens, order.samples)
        rows = list(zip(order.micro_batches, batches, strict=True))
        feeds: list[Policy | Values] = []
        for name in order.models:
            if self._plans[name].head is Head.WORDS:
                policies = [_policy_batch(row, padded) for row, padded in rows]
                feeds.append(Policy(order.policy, policies, whole, self._width(name)))
            else:
                values = [_value_batch(row, padded) for row, padded in rows]
                feeds.append(Values(order.value, values, whole, self._width(name)))
        ran = self._run(order.program, order.models, feeds)
        figures = {
            name: _figures(feed)
            for name, feed in zip(order.models, feeds, strict=True)
            if self._ends_here(name)
        }
        return Trained(figures, self._step(order.models), tuple(ran))

    def _train_pairs(self, order: TrainPairs) -> Trained:
        batches = [Padded.of(samples) for samples in order.micro_batches]
        pairs = sum(len(batch.prompts_B) for batch in batches) // 2
        feed = Pairs(batches, order.pairs, self._width(order.model))
        ran = self._run(order.program, (order.model,), [feed])
        figures = {}
        if self._ends_here(order.model):
            right = sum(feed.right.values()) / pairs
            loss = sum(feed.losses.values())
            figures[order.model] = {"loss": loss, "accuracy": right, "weight": float(pairs)}
        return Trained(figures, self._step((order.model,)), tuple(ran))

    def _step(self, models: Sequence[str]) -> dict[str, float]:
        return {name: self._optimisers[name].step() for name in models if name in self._optimisers}

    def _export(self, order: Export) -> Written:
        files: dict[str, str] = {}
        weights: dict[str, str] = {}
        for (name, stage), part in self.parts.items():
            if name == order.model and not self._block:
                file, held = f"model-{stage:05d}.safetensors", part.weights()
                files[file] = weights_file.write(Path(order.folder) / file, held)
                weights |= dict.fromkeys(held, file)
        return Written(files, weights)

    def _save(self, order: Save) -> Written:
        files = {}
        for (name, stage), part in self.parts.items():
            if name in self._optimisers and not self._block:
                held = dict(part.module.named_parameters())
                state = self._optimisers[name].state()
                for kind, values in (("weights", held), ("optimiser", state)):
                    file = f"{name}-{stage:05d}-{kind}.safetensors"
                    files[file] = weights_file.write(Path(order.folder) / file, values)
        return Written(files, {})

    def _restore(self, folder: Path) -> None:
        for (name, stage), part in self.parts.items():
            if name in self._optimisers:
                kept = weights_file.read(folder / f"{name}-{stage:05d}-weights.safetensors")
                with torch.no_grad():
                    for key, weight in part.module.named_parameters():
                        weight.copy_(kept[key])
                state = weights_file.read(folder / f"{name}-{stage:05d}-optimiser.safetensors")
                self._optimisers[name].restore(state)


def _rows(found: Tensor, mask_BR: Tensor) -> Rows:
    """A row of numbers for each sample: of its tokens, or its one."""
    if found.dim() == 1:
        return tuple((number,) for number in found.tolist())
    lengths = mask_BR.sum(1).tolist()
    return tuple(tuple(row[:length]) for row, length in zip(found.tolist(), lengths, strict=True))


def _stacked(rows: Sequence[Sequence[float]], like_BR: Tensor) -> Tensor:
    stacked = torch.zeros(like_BR.shape)
    for b, row in enumerate(rows):
        stacked[b, : len(row)] = torch.tensor(row)
    return stacked


def _policy_batch(row: Sequence[Experience], padded: Padded) -> PolicyBatch:
    mask_BR = padded.mask_BR
    reference = _stacked([each.reference for each in row], mask_BR) if row[0].reference else None
    weights = _stacked([each.weights for each in row], mask_BR) if row[0].weights else None
    old = _stacked([each.old for each in row], mask_BR) if row[0].old else None
    drawn = None
    if all(each.sample.logprobs for each in row):
        drawn = _stacked([each.sample.logprobs for each in row], mask_BR)
    advantages_BR = _stacked([each.advantages for each in row], mask_BR)
    return PolicyBatch(padded, old, advantages_BR, reference, weights, drawn)


def _value_batch(row: Sequence[Experience], padded: Padded) -> ValueBatch:
    values_BR = _stacked([each.values for each in row], padded.mask_BR)
    return ValueBatch(padded, values_BR, _stacked([each.returns for each in row], padded.mask_BR))


def _figures(feed: Policy | Values) -> dict[str, float]:
    """Loss, and health averaged over tokens."""
    tokens = sum(count for count, _ in feed.health.values())
    found = {"loss": sum(feed.losses.values()), "weight": float(tokens)}
    for count, health in feed.health.values():
        for key, value in asdict(health).items():
            found[key] = found.get(key, 0.0) + value * count / tokens
    if isinstance(feed, Policy) and feed.gaps:
        found["drawn_gap"] = max(feed.gaps.values())
    return found
