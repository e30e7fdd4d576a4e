"""A real Actor and a real Critic on two ranks: what fusing their pipelines gains."""

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, LlamaConfig

from pipelines.cases import span_s
from pipelines.ranks import Ranks
from plait.search.pipelines.builders import one_f_one_b, serial_s
from plait.search.pipelines.find import ScheduleSearch, searched
from plait.search.pipelines.fuse import Share, even, fused
from plait.search.pipelines.rendezvous import programs
from plait.search.pipelines.timing import measure
from plait.spec.schedule import Kind, PipelineProblem, PipelineSchedule, Program
from plait.training.aggregate import Whole
from plait.training.batch import Padded, Sample
from plait.training.cut import Head, Part, load
from plait.training.cut import even as evenly
from plait.training.losses import ValueLossConfig
from plait.training.objectives import Policy, PolicyBatch, PolicyConfig, ValueBatch, Values
from plait.training.pipeline import Pipeline, Ran
from plait.training.post import Post, PostConfig
from plait.training.stage import Stage

STAGES, SAMPLES, PROMPT, RESPONSE, VOCAB, WIDTH = 2, 4, 32, 96, 512, 384
STATE: dict[str, Any] = {}
"""Of a rank's process: what it holds between two orders."""


@dataclass(frozen=True)
class Pair:
    """What is trained."""

    micro_batches: int


@dataclass(frozen=True)
class Gain:
    """What came of it."""

    predicted: float
    """Serial over fused, by the stages' measured times."""
    share: float
    """Of the predicted gain that was measured."""
    gap: float
    """Largest difference of a gradient of the fused run from the serial one's."""


def folder_of_model(root: Path) -> Path:
    """A small Llama with random weights."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": WIDTH,
        "intermediate_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
    }
    config = LlamaConfig(vocab_size=VOCAB, num_key_value_heads=4, pad_token_id=0, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(root)
    return root


def problem_of(pair: Pair) -> PipelineProblem:
    """Both in opposite directions; times are filled in by `calibrated`."""
    share = even(STAGES, pair.micro_batches, 1.0)
    return fused([Share(replace(share, name="actor")), Share(replace(share, name="critic"), reverse=True)])


def hold(rank: int, folder: str) -> None:
    """Load this rank's stages."""
    counts = evenly(6, STAGES)
    STATE["stages"] = {
        (model, stage): Stage(
            Part(load(Path(folder), head, 0), head, counts, stage), first=stage == 0, last=stage == STAGES - 1
        )
        for model, head in enumerate((Head.WORDS, Head.SCORE))
        for stage in range(STAGES)
        if (stage if model == 0 else STAGES - 1 - stage) == rank
    }
    STATE["post"] = Post(PostConfig(), dist.group.WORLD)


def train(rank: int, pair: Pair, problem: PipelineProblem, schedule: PipelineSchedule) -> list[Ran]:
    """Run a schedule with gradients anew, which are kept."""
    return _train(pair, [programs(problem, schedule)[rank]])


def train_serially(rank: int, pair: Pair, problem: PipelineProblem) -> list[Ran]:
    """The Actor as 1F1B, and when all ranks are done with it the Critic."""
    program = programs(problem, one_f_one_b(problem))[rank]
    return _train(pair, [tuple(deed for deed in program if deed.action.model == model) for model in range(2)])


def _train(pair: Pair, parts: Sequence[Program]) -> list[Ran]:
    pipeline = Pipeline(STATE["stages"], [STAGES] * 2, STATE["post"])
    stages, feeds, ran = STATE["stages"].values(), _feeds(pair), []
    for stage in stages:
        stage.module.zero_grad()
    for part in parts:
        dist.barrier()
        ran += pipeline.run(part, feeds)
    STATE["gradients"] = [weight.grad.clone() for stage in stages for weight in stage.module.parameters()]
    return ran


def keep(rank: int) -> None:
    """Remember the gradients of the last run."""
    STATE["kept"] = STATE["gradients"]


def gap(rank: int) -> float:
    """Largest difference of the last run's gradients from those kept."""
    pairs = zip(STATE["gradients"], STATE["kept"], strict=True)
    return max((one - other).abs().max().item() for one, other in pairs)


def _feeds(pair: Pair) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    policies, values = [], []
    for number in range(pair.micro_batches):
        words = torch.randint(1, VOCAB, (SAMPLES, PROMPT + RESPONSE), generator=generator).tolist()
        samples = [
            Sample(number * SAMPLES + i, i, tuple(row[:PROMPT]), tuple(row[PROMPT:]), True)
            for i, row in enumerate(words)
        ]
        padded, noise = Padded.of(samples), torch.randn(SAMPLES, RESPONSE, generator=generator)
        policies.append(PolicyBatch(padded, -6 + 0.1 * noise, noise))
        values.append(ValueBatch(padded, noise, noise.flip(1)))
    whole = Whole.of(*(each.padded.mask_BR for each in policies))
    return [Policy(PolicyConfig(), policies, whole, WIDTH), Values(ValueLossConfig(), values, whole, WIDTH)]


def calibrated(problem: PipelineProblem, ran: Sequence[Sequence[Ran]]) -> PipelineProblem:
    """The problem with the median times of these runs."""

    def times(model: int, kind: Kind) -> tuple[float, ...]:
        return tuple(
            statistics.median(
                (r.end_ns - r.begin_ns) / 1e9
                for row in ran
                for r in row
                if (r.action.model, r.action.stage, r.action.kind) == (model, stage, kind)
            )
            for stage in range(STAGES)
        )

    models = (
        replace(each, forward_s=times(m, Kind.F), backward_s=times(m, Kind.B))
        for m, each in enumerate(problem.models)
    )
    return replace(problem, models=tuple(models))


def measured(ranks: Ranks, pair: Pair, repeats: int) -> Gain:
    """Serial and fused in turn."""
    problem = problem_of(pair)
    with tempfile.TemporaryDirectory() as root:
        ranks.run(hold, str(folder_of_model(Path(root))))
    plain = one_f_one_b(problem)
    warm = [ranks.run(train, pair, problem, plain) for _ in range(3)]
    problem = calibrated(problem, [row for each in warm[1:] for row in each])
    best = searched(problem, ScheduleSearch(moves=20_000))
    ranks.run(train, pair, problem, best.schedule)  # takes the memory that it needs
    alone_s, fused_s, gaps = [], [], []
    for _ in range(repeats):
        alone_s.append(span_s(ranks.run(train_serially, pair, problem)))
        ranks.run(keep)
        fused_s.append(span_s(ranks.run(train, pair, problem, best.schedule)))
        gaps.append(max(ranks.run(gap)))
    predicted = serial_s(problem) / measure(problem, best.schedule).makespan_s
    actual = statistics.median(alone_s) / statistics.median(fused_s)
    return Gain(predicted, (actual - 1) / (predicted - 1), max(gaps))
