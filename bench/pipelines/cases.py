"""Small models on random pipelines, and what one process computes for the same."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from plait.search.pipelines.rendezvous import programs
from plait.search.pipelines.tasks import tasks_of
from plait.spec.schedule import PipelinedModel, PipelineProblem, PipelineSchedule
from plait.training.pipeline import Pipeline, Ran
from plait.training.post import Post, PostConfig
from plait.training.stage import Stage

WORDS, SAMPLES = 11, 2
GROUPS: dict[int, dist.ProcessGroup] = {}
"""Of a rank's process: the first so many ranks."""


@dataclass(frozen=True)
class Case:
    """A schedule of small models, told by a few numbers."""

    ranks: int
    seed: int
    recompute: bool = False
    tagged: bool = True

    @property
    def problem(self) -> PipelineProblem:
        """One to three models with one to five stages in any places, some with split backwards."""
        dice = random.Random(self.seed)
        models = []
        for _ in range(dice.randint(1, 3)):
            places = tuple(dice.randrange(self.ranks) for _ in range(dice.randint(1, max(self.ranks, 5))))
            ones = (1.0,) * len(places)
            models.append(PipelinedModel(dice.randint(1, 5), places, ones, ones, dice.choice((ones, None))))
        return PipelineProblem(self.ranks, tuple(models))

    @property
    def schedule(self) -> PipelineSchedule:
        """Valid, and otherwise by chance."""
        return random_schedule(self.problem, random.Random(self.seed + 1))


def random_schedule(problem: PipelineProblem, dice: random.Random) -> PipelineSchedule:
    """At every turn any action whose predecessor is done."""
    tasks = tasks_of(problem)
    done = [0] * len(tasks.series)
    rows: list[list[int]] = [[] for _ in range(problem.ranks)]
    for _ in range(tasks.count):
        able = [
            index
            for index, each in enumerate(tasks.series)
            if done[index] < (each.count if each.after < 0 else done[each.after])
        ]
        chosen = dice.choice(able)
        done[chosen] += 1
        rows[tasks.series[chosen].rank].append(chosen)
    return tasks.schedule(rows)


class Block(nn.Module):
    """A stage: words to activations, activations to activations."""

    def __init__(self, width: int, first: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, width) if first else None
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width, bias=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, received: Tensor | None, words_BT: Tensor) -> Tensor:
        x = self.table(words_BT) if self.table is not None else received
        return self.norm(x + self.down(nn.functional.gelu(self.up(x))))


@dataclass
class Words:
    """Micro-batches of different lengths, and the loss on them."""

    model: int
    count: int
    width: int
    losses: dict[int, float] = field(default_factory=dict)

    def micro_batch(self, number: int) -> Tensor:
        """Words [B, T]."""
        generator = torch.Generator().manual_seed(1000 * self.model + number)
        return torch.randint(WORDS, self.shape(number)[:2], generator=generator)

    def shape(self, number: int) -> tuple[int, ...]:
        """[B, T, N]."""
        return (SAMPLES, 3 + 5 * number % 7, self.width)

    def finish(self, number: int, output: Tensor) -> Tensor:
        """Mean square, of the mean over micro-batches."""
        loss = output.pow(2).mean() / self.count + output.sum() * 0.01
        self.losses[number] = loss.item()
        return loss


def width_of(model: int) -> int:
    """Of a model's activations."""
    return (16, 24, 40)[model % 3]


def blocks(problem: PipelineProblem, model: int) -> list[Block]:
    """All stages of a model, the same in every process."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(model)
        return [Block(width_of(model), stage == 0) for stage in range(problem.models[model].stages)]


def feeds(problem: PipelineProblem) -> list[Words]:
    """What the models are trained on."""
    return [Words(m, each.micro_batches, width_of(m)) for m, each in enumerate(problem.models)]


def largest_gap(rank: int, case: Case) -> float:
    """Run a case; the largest difference of a gradient on this rank from one process's."""
    problem = case.problem
    mine = {
        (model, stage): Stage(
            block, first=stage == 0, last=stage == each.stages - 1, recompute=case.recompute
        )
        for model, each in enumerate(problem.models)
        for stage, block in enumerate(blocks(problem, model))
        if each.ranks[stage] == rank
    }
    depths = [each.stages for each in problem.models]
    pipeline = Pipeline(mine, depths, Post(PostConfig(tagged=case.tagged)))
    pipeline.run(programs(problem, case.schedule)[rank], feeds(problem))
    wanted = alone(problem)
    return max((_gap(stage.module, wanted[place]) for place, stage in mine.items()), default=0.0)


def alone(problem: PipelineProblem) -> dict[tuple[int, int], Block]:
    """The stages of all models with the gradients of one process that trains one after another."""
    found = {}
    for model, feed in enumerate(feeds(problem)):
        whole = blocks(problem, model)
        for number in range(feed.count):
            x: Tensor | None = None
            for block in whole:
                x = block(x, feed.micro_batch(number))
            assert x is not None
            feed.finish(number, x).backward()
        found |= {(model, stage): block for stage, block in enumerate(whole)}
    return found


def _gap(mine: nn.Module, theirs: nn.Module) -> float:
    pairs = zip(mine.parameters(), theirs.parameters(), strict=True)
    return max((one.grad - other.grad).abs().max().item() for one, other in pairs)


class Sleeper(nn.Module):
    """A stage that takes a given time and gives its input; what is timed is everything else."""

    def __init__(self, forward_s: float, backward_s: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.forward_s, self.backward_s = forward_s, backward_s

    def forward(self, received: Tensor | None, x: Tensor) -> Tensor:
        time.sleep(self.forward_s)
        return _Slow.apply((x if received is None else received) + self.weight, self.backward_s)


class _Slow(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, backward_s: float) -> Tensor:
        ctx.backward_s = backward_s
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        time.sleep(ctx.backward_s)
        return gradient, None


@dataclass(frozen=True)
class Still:
    """Micro-batches whose content does not matter."""

    width: int = 64

    def micro_batch(self, number: int) -> Tensor:
        """Activations of the first stage."""
        return torch.zeros(self.shape(number))

    def shape(self, number: int) -> tuple[int, ...]:
        """[1, N]."""
        return (1, self.width)

    def finish(self, number: int, output: Tensor) -> Tensor:
        """The loss."""
        return output.sum()


def meet(rank: int, widths: Sequence[int]) -> None:
    """Make the groups that `slept` needs; all ranks call it."""
    GROUPS.update({width: dist.new_group(list(range(width))) for width in widths})


def slept(rank: int, problem: PipelineProblem, schedule: PipelineSchedule, unit_s: float) -> list[Ran]:
    """Run a schedule of stages that sleep, so many seconds for each of the problem's."""
    mine = {
        (model, stage): Stage(
            Sleeper(each.forward_s[stage] * unit_s, each.backward_s[stage] * unit_s),
            first=stage == 0,
            last=stage == each.stages - 1,
        )
        for model, each in enumerate(problem.models)
        for stage in range(each.stages)
        if each.ranks[stage] == rank
    }
    group = GROUPS[problem.ranks]
    pipeline = Pipeline(mine, [each.stages for each in problem.models], Post(PostConfig(), group))
    program = programs(problem, schedule)[rank]
    dist.barrier(group)
    return pipeline.run(program, [Still()] * len(problem.models))


def span_s(ran: Sequence[Sequence[Ran]]) -> float:
    """From the first action's begin to the last one's end, over all ranks."""
    every = [each for row in ran for each in row]
    return (max(each.end_ns for each in every) - min(each.begin_ns - each.waited_ns for each in every)) / 1e9
