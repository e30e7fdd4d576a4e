"""The pipeline runtime on real processes: gradients are those of one process, faults are named."""

import os
import signal
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from bench.pipelines.cases import Case, blocks, feeds, largest_gap
from bench.pipelines.ranks import Ranks

from plait.search.pipelines.rendezvous import programs
from plait.spec.schedule import Action, Kind
from plait.training.late import LateWeights
from plait.training.pipeline import Pipeline
from plait.training.post import MICRO_BATCHES, MODELS, STAGES, PipelineFault, Post, PostConfig, tag_of
from plait.training.replicas import Replicas, Shared
from plait.training.stage import Stage
from tests.scale import scaled, seed


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with Ranks(4) as made:
        yield made


def test_gradients_of_random_schedules_are_those_of_one_process(ranks):
    first = seed() % 100_000
    for number in range(scaled(200)):
        case = Case(2 + number % 3, first + number, recompute=number % 4 == 3, tagged=number % 5 != 4)
        assert max(ranks.run(largest_gap, case, among=case.ranks)) == 0, case


def test_tags_are_unique():
    actions = [
        Action(model, stage, kind, number)
        for model in (0, 1, MODELS - 1)
        for stage in (0, 1, STAGES - 1)
        for kind in (Kind.F, Kind.B)
        for number in (0, 1, MICRO_BATCHES - 1)
    ]
    tags = [tag_of(action) for action in actions]
    assert len(set(tags)) == len(tags)
    assert max(tags) < 2**31


def test_late_weights_have_the_bits_of_torch():
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(33, 65), torch.nn.GELU(), torch.nn.Linear(65, 7, bias=False))
    x_BTI = torch.randn(3, 17, 33)
    layers(x_BTI).square().sum().backward()
    wanted = [weight.grad.clone() for weight in layers.parameters()]
    layers.zero_grad()
    late = LateWeights(layers)
    loss = layers(x_BTI).square().sum()
    with late.owing() as debts:
        loss.backward()
    assert all(weight.grad is None for weight in layers.parameters())
    late.settle(debts)
    assert all(torch.equal(w.grad, want) for w, want in zip(layers.parameters(), wanted, strict=True))


def starved(rank: int) -> str:
    """Rank 1 runs nothing; what rank 0 says of it."""
    case = Case(2, 0)
    problem = case.problem
    if rank == 1:
        return ""
    post = Post(PostConfig(patience_s=0.3))
    stages = {
        (m, s): Stage(block, first=s == 0, last=s == each.stages - 1)
        for m, each in enumerate(problem.models)
        for s, block in enumerate(blocks(problem, m))
        if each.ranks[s] == 0
    }
    pipeline = Pipeline(stages, [each.stages for each in problem.models], post)
    try:
        pipeline.run(programs(problem, case.schedule)[0], feeds(problem))
    except PipelineFault as fault:
        return str(fault)
    return "nothing"


def test_a_message_that_never_comes_is_named():
    with Ranks(2) as pair:
        said, _ = pair.run(starved)
    for word in ("rank 0", "model", "stage", "micro-batch", "rank 1", "tag", "done before"):
        assert word in said, said


@pytest.mark.slow
def test_a_killed_rank_is_noticed():
    with Ranks(2) as pair:
        os.kill(pair.processes[1].pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match=r"failed|ended"):
            pair.run(largest_gap, Case(2, 0))


def summed(rank: int) -> list[float]:
    weight = torch.nn.Parameter(torch.zeros(3))
    weight.grad = torch.full((3,), float(rank + 1))
    replicas = Replicas([Shared((weight,), dist.group.WORLD)], 10)
    replicas.begin()
    replicas.finish()
    return weight.grad.tolist()


def test_replicas_add_up(ranks):
    assert ranks.run(summed) == [[10.0] * 3] * 4
