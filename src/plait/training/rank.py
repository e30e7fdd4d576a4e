"""`TrainingRank`: one process of the trainer. It holds its stages of all models and carries out orders."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from plait.model import weights_file
from plait.spec.errors import UserError
from plait.spec.schedule import Program
from plait.spec.shape import LayerShape, ModelShape
from plait.training.adapter import Unadapted, adapt, adapters, is_adapter
from plait.training.aggregate import Whole
from plait.training.batch import Padded
from plait.training.columns import Columns
from plait.training.cut import Head, Part, load
from plait.training.device import Backend, device_of
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

Seats = tuple[Sequence[int], Sequence[int], Sequence[int]]
"""Blocks, places and columns."""


@dataclass(frozen=True, slots=True)
class Groups:
    """Ranks that hold the same of a model."""

    ends: dist.ProcessGroup
    """Its table and its head, where these are one."""
    copies: dist.ProcessGroup
    """All of a stage's share."""
    partial: dist.ProcessGroup
    """The stage, each with a part of some gradients."""


class TrainingRank:
    """Carries out orders; all ranks get the same ones in the same order."""

    def __init__(self, config: RankConfig) -> None:
        """Meet the other ranks and load.

        Raises:
            PlaitError: a model cannot be used so; says why.
            RuntimeError: the others do not come.
        """
        self.config, self._patience = config, timedelta(seconds=config.patience_s)
        self._device = device_of(config.backend, config.rank, config.ranks)
        if config.backend is not Backend.GLOO:
            torch.set_default_device(self._device)
        dist.init_process_group(
            config.backend.value,
            init_method=f"file://{config.meeting}",
            rank=config.rank,
            world_size=config.ranks,
            timeout=self._patience,
        )
        self._grid = config.grid
        self._block, self._place, self._column = self._grid.seat(config.rank)
        blocks, places, columns = self._grid.every
        pipeline = self._mine([([block], places, [column]) for block in blocks for column in columns])
        self._columns = self._mine([([block], [place], columns) for block in blocks for place in places])
        tagged = config.backend is Backend.GLOO
        self._post = Post(PostConfig(patience_s=config.patience_s, tagged=tagged), pipeline, self._device)
        self.stages: dict[tuple[str, int], Stage] = {}
        self.parts: dict[tuple[str, int], Part | Unadapted] = {}
        self._shares: dict[str, Columns] = {}
        """By model, where layers are shared by columns."""
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

    def _mine(self, seats: Sequence[Seats]) -> dist.ProcessGroup:
        """The one of these groups that this rank is in; all ranks make all of them, in this order."""
        mine = None
        for each in seats:
            ranks = self._grid.ranks(*each)
            group = dist.new_group(ranks, timeout=self._patience)
            if self.config.rank in ranks:
                mine = group
        return mine

    def _hold(self, plan: ModelPlan) -> None:
        blocks, _, columns = self._grid.every
        ends = sorted({plan.ranks[0], plan.ranks[-1]})
        all_of_it = self._mine([([block], plan.ranks, columns) for block in blocks])
        groups = Groups(
            ends=self._mine([(blocks, ends, [column]) for column in columns]),
            copies=self._mine([(blocks, [place], [column]) for place in plan.ranks for column in columns]),
            partial=self._mine([(blocks, [place], columns) for place in plan.ranks]),
        )
        if self._place not in plan.ranks:
            return
        stage = plan.ranks.index(self._place)
        if plan.adapted:
            part: Part | Unadapted = Unadapted(self.parts[plan.adapted, stage])
        else:
            part = self._load(plan, stage)
        recompute = self.config.recompute
        self.parts[plan.name, stage] = part
        self.stages[plan.name, stage] = Stage(part, first=part.first, last=part.last, recompute=recompute)
        if plan.optimiser is None or isinstance(part, Unadapted):
            return
        named = _trained(part)
        if not named:
            raise UserError(f"lora.targets name no layer of stage {stage}: name some that every layer has")
        self._replicas[plan.name, stage] = Replicas(
            self._shared(part, named, self._shares.get(plan.name), groups), self.config.patience_s
        )
        elsewhere = [name for name in named if not self._counts(part, plan.name, name)]
        self._optimisers[plan.name] = Optimiser(plan.optimiser, named, elsewhere, all_of_it)

    def _load(self, plan: ModelPlan, stage: int) -> Part:
        module = load(Path(plan.folder), plan.head, plan.seed)
        if plan.zero_head and plan.head is Head.SCORE:
            torch.nn.init.zeros_(module.score.weight)
        module.to(self._device)
        if self._grid.tp > 1:
            layer = _layer(Path(plan.folder))
            self._shares[plan.name] = Columns(module, layer, self._grid.tp, self._column, self._columns)
        if plan.lora is not None:
            adapt(module, plan.lora, plan.seed)
        part = Part(module, plan.head, plan.layers, stage)
        for name, weight in part.named_parameters():
            weight.requires_grad_(plan.optimiser is not None and (plan.lora is None or is_adapter(name)))
        return part

    def _shared(
        self, part: Part, named: dict[str, torch.nn.Parameter], share: Columns | None, groups: Groups
    ) -> list[Shared]:
        """What is summed with whom: a tied weight, what every block has, what columns have in part."""
        tied = part.tied
        partial = [n for n in named if share is not None and n in share.partial]
        others = [n for n, weight in named.items() if n not in partial and weight is not tied]
        shared = [] if tied is None or not tied.requires_grad else [Shared((tied,), groups.ends)]
        if partial:
            shared.append(Shared(tuple(named[n] for n in partial), groups.partial))
        if self._grid.blocks > 1:
            shared.append(Shared(tuple(named[n] for n in others), groups.copies))
        return shared

    def _counts(self, part: Part, model: str, name: str) -> bool:
        """Whether the norm of the model's gradient counts a weight here."""
        twice = part.last and part.module.get_parameter(name) is part.tied
        share = self._shares.get(model)
        return not twice and (share is None or share.counts(name))

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
        """This rank tells what comes out of a model, which is the same in every column."""
        return self._plans[name].ranks[-1] == self._place and not self._column

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
            if name != order.model or self._block:
                continue
            assert isinstance(part, Part), "a model whose adapter is off has nothing of its own"
            held = adapters(part.module) if order.adapter else part.weights()
            if name in self._shares:
                held = self._shares[name].whole(held)
            if not self._column:
                file = f"model-{stage:05d}.safetensors"
                files[file] = weights_file.write(Path(order.folder) / file, held)
                weights |= dict.fromkeys(held, file)
        return Written(files, weights)

    def _save(self, order: Save) -> Written:
        files = {}
        for (name, stage), part in self.parts.items():
            if name in self._optimisers and not self._block:
                assert isinstance(part, Part), "a model whose adapter is off is not trained"
                held: dict[str, Tensor] = {key: weight.detach() for key, weight in _trained(part).items()}
                for kind, values in (("weights", held), ("optimiser", self._optimisers[name].state())):
                    file = self._file(name, stage, kind)
                    files[file] = weights_file.write(Path(order.folder) / file, values)
        return Written(files, {})

    def _restore(self, folder: Path) -> None:
        for (name, stage), part in self.parts.items():
            if name in self._optimisers:
                assert isinstance(part, Part), "a model whose adapter is off is not trained"
                kept = weights_file.read(folder / self._file(name, stage, "weights"))
                with torch.no_grad():
                    for key, weight in _trained(part).items():
                        weight.copy_(kept[key])
                state = weights_file.read(folder / self._file(name, stage, "optimiser"))
                self._optimisers[name].restore(state)

    def _file(self, model: str, stage: int, kind: str) -> str:
        """Of a checkpoint: what this column has of a stage."""
        column = f"-{self._column:02d}" if self._grid.tp > 1 else ""
        return f"{model}-{stage:05d}{column}-{kind}.safetensors"


def _trained(part: Part) -> dict[str, torch.nn.Parameter]:
    """What an optimiser steps, by name."""
    return {name: weight for name, weight in part.module.named_parameters() if weight.requires_grad}


def _layer(folder: Path) -> LayerShape:
    """A layer of a model; all are alike where they can be shared."""
    return ModelShape.from_config(json.loads((folder / "config.json").read_text())).layers[0]


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
