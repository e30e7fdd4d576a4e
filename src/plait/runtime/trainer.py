"""`Trainer`: the models of an alignment on the ranks of a crew, and the schedules that they run by.

The Actor and the reference go through the ranks forwards, the Critic and the reward model backwards, so that
each fills the others' bubbles. What is computed does not depend on the schedule, to the bit.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from plait.model import weights_file
from plait.runtime.crew import Crew
from plait.runtime.recipe import Fusion
from plait.runtime.rows import batched
from plait.search.pipelines.builders import alone_s, one_after_another, zero_bubble
from plait.search.pipelines.find import ScheduleSearch, greedy, searched
from plait.search.pipelines.rendezvous import programs
from plait.search.pipelines.timing import measure
from plait.spec.errors import EngineFailure, UserError
from plait.spec.schedule import Kind, PipelinedModel, PipelineProblem, PipelineSchedule, Program
from plait.training.adapter import LoraConfig
from plait.training.batch import Sample
from plait.training.losses import ValueLossConfig
from plait.training.objectives import PolicyConfig
from plait.training.orders import (
    Experience,
    Export,
    Found,
    ModelPlan,
    Order,
    Read,
    Reply,
    Rows,
    Save,
    Train,
    Trained,
    TrainPairs,
    Written,
)
from plait.training.pipeline import Ran
from plait.training.readings import Want

WANTS = {
    "actor": Want.LOGPROBS,
    "reference": Want.LOGPROBS,
    "critic": Want.VALUES,
    "reward": Want.SCORE,
}
SEARCH = ScheduleSearch(moves=50_000)
"""As long as a second or so; limited in moves, so that it can be repeated."""
KEPT = ("*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")
"""Files of a model's folder besides its weights."""
INDEX, ADAPTER = "model.safetensors.index.json", "adapter_model.safetensors"


@dataclass
class Timeline:
    """What every rank did, order by order."""

    rows: list[tuple[str, tuple[str, ...], int, Ran]] = field(default_factory=list)
    """Order, its models, rank, action."""

    def add(self, order: str, models: Sequence[str], replies: Sequence[Reply]) -> None:
        """Note what the ranks answered."""
        for rank, reply in enumerate(replies):
            if isinstance(reply, Found | Trained):
                self.rows.extend((order, tuple(models), rank, ran) for ran in reply.ran)

    def save(self, path: Path) -> None:
        """Write a trace that ui.perfetto.dev opens: a process for each rank, waiting and actions apart."""
        events = []
        for order, models, rank, ran in self.rows:
            action = ran.action
            title = f"{models[action.model]} {action.kind.value}{action.micro_batch}"
            place = {"pid": rank, "tid": 0, "ph": "X"}
            times = {"ts": ran.begin_ns / 1e3, "dur": (ran.end_ns - ran.begin_ns) / 1e3}
            events.append({"name": title, "cat": order, **place, **times})
            if ran.waited_ns > 1000:
                times = {"ts": (ran.begin_ns - ran.waited_ns) / 1e3, "dur": ran.waited_ns / 1e3}
                events.append({"name": f"wait for {title}", "cat": "idle", **place, **times, "tid": 1})
        path.write_text(json.dumps({"displayTimeUnit": "ms", "traceEvents": events}))


@dataclass(frozen=True, slots=True)
class Lowered:
    """A schedule of a training step, as ranks run it."""

    programs: tuple[Program, ...]
    makespan_s: float


class Trainer:
    """See the module."""

    def __init__(
        self, crew: Crew, fusion: Fusion, micro_batch: int, temperature: float, *, split: bool = False
    ) -> None:
        """
        Args:
            crew: started.
            micro_batch: samples.
            temperature: that they are drawn at.
            split: backwards are B and W.
        """
        self.crew, self.fusion, self.split = crew, fusion, split
        self.micro_batch, self.temperature = micro_batch, temperature
        self.timeline = Timeline()
        self._plans = {plan.name: plan for plan in crew.config.models}
        self._times: dict[tuple[str, int, Kind], float] = {}
        """Seconds of an action, as last measured."""
        self._lowered: dict[tuple[tuple[str, ...], int], Lowered] = {}

    async def read(self, models: Sequence[str], samples: Sequence[Sample]) -> dict[str, Rows]:
        """What models say of samples, in their order."""
        if not models:
            return {}
        rows = list(batched(samples, self.micro_batch))
        shares = self._shared([sum(each.tokens for each in row) for row in rows])
        wants = tuple(WANTS[name] for name in models)
        orders: dict[int, Order] = {}
        for block, share in enumerate(shares):
            problem = self._problem(models, len(share), train=False)
            batches = tuple(rows[at] for at in share)
            for rank, program in self._ranks(block, programs(problem, greedy(problem))):
                orders[rank] = Read(program, tuple(models), wants, batches, self.temperature)
        replies = await self.crew.orders(orders)
        self.timeline.add("read", models, replies)
        return {name: self._joined(name, shares, replies) for name in models}

    def _joined(self, name: str, shares: Sequence[Sequence[int]], replies: Sequence[Reply]) -> Rows:
        """What the blocks read of a model, in the order of the samples."""
        found: dict[int, Rows] = {}
        said = [
            reply.readings[name] for reply in replies if isinstance(reply, Found) and name in reply.readings
        ]
        for share, batches in zip(shares, said, strict=True):
            found |= dict(zip(share, batches, strict=True))
        return tuple(row for at in sorted(found) for row in found[at])

    async def train(
        self,
        models: Sequence[str],
        rows: Sequence[Experience],
        policy: PolicyConfig,
        value: ValueLossConfig,
    ) -> dict[str, float]:
        """One optimiser step of each model on a mini-batch; figures by `model/figure`."""
        batches = list(batched(rows, self._at_most(len(rows))))
        tokens = sum(len(each.sample.response) for each in rows)
        orders: dict[int, Order] = {}
        for block, share in enumerate(self._shared([sum(e.sample.tokens for e in row) for row in batches])):
            mine = tuple(batches[at] for at in share)
            for rank, program in self._ranks(block, self._lower(tuple(models), len(share)).programs):
                orders[rank] = Train(program, tuple(models), mine, tokens, len(rows), policy, value)
        replies = await self.crew.orders(orders)
        self._learn(models, replies)
        self.timeline.add("train", models, replies)
        return _figures(replies)

    def is_shorter_apart(self, samples: int, handed_s: float) -> bool:
        """Whether a mini-batch of so many samples, after which the Actor's weights are handed over, ends
        sooner when the Actor is trained first and the Critic while that lasts; by measured times, so not at
        first.

        Args:
            handed_s: what handing over took last time.
        """
        models = ("actor", "critic")
        if not handed_s or not self._measured(models):
            return False
        count = -(-samples // self.micro_batch // self.crew.config.blocks)
        alone = alone_s(self._problem(models, count, train=True))
        together_s = self._lower(models, count).makespan_s + handed_s
        return alone["actor"] + max(alone["critic"], handed_s) < together_s

    async def train_pairs(self, model: str, samples: Sequence[Sample]) -> dict[str, float]:
        """One optimiser step of a reward model; the chosen sample of each pair comes first."""
        batches = list(batched(samples, 2 * self._at_most(len(samples) // 2)))
        orders: dict[int, Order] = {}
        for block, share in enumerate(self._shared([sum(each.tokens for each in row) for row in batches])):
            mine = tuple(batches[at] for at in share)
            for rank, program in self._ranks(block, self._lower((model,), len(share)).programs):
                orders[rank] = TrainPairs(program, model, mine, len(samples) // 2)
        replies = await self.crew.orders(orders)
        self._learn((model,), replies)
        self.timeline.add("pairs", (model,), replies)
        return _figures(replies)

    def _at_most(self, samples: int) -> int:
        """Samples of a micro-batch: as asked for, or fewer, so that every block has one.

        Raises:
            UserError: there are fewer samples than blocks.
        """
        blocks = self.crew.config.blocks
        if samples < blocks:
            raise UserError(
                f"{samples} samples are left to train on, too few for {blocks} blocks: lower blocks"
            )
        return min(self.micro_batch, samples // blocks)

    def _shared(self, tokens: Sequence[int]) -> list[list[int]]:
        """Micro-batches of each block that gets any: the largest first, to the block with fewest tokens."""
        shares: list[list[int]] = [[] for _ in range(self.crew.config.blocks)]
        loads = [0] * len(shares)
        for at in sorted(range(len(tokens)), key=lambda at: (-tokens[at], at)):
            block = min(range(len(shares)), key=lambda block: (loads[block], block))
            shares[block].append(at)
            loads[block] += tokens[at]
        return [sorted(share) for share in shares if share]

    def _ranks(self, block: int, lowered: Sequence[Program]) -> list[tuple[int, Program]]:
        """Processes of a block with their programs: those of one place have the same."""
        grid = self.crew.config.grid
        return [
            (grid.rank(block, place, column), program)
            for place, program in enumerate(lowered)
            for column in range(grid.tp)
        ]

    async def export(self, model: str, source: Path, folder: Path) -> dict[str, str]:
        """Write a model as transformers reads it; the checksum of each file's weights in memory.

        Args:
            source: folder of configuration and tokenizer.
        """
        _copy_rest(source, folder)
        files, weights = _written(await self.crew.order(Export(model, str(folder))))
        index = {"metadata": {}, "weight_map": weights}
        (folder / INDEX).write_text(json.dumps(index))
        return files

    async def export_adapter(self, model: str, base: Path, config: LoraConfig, folder: Path) -> None:
        """Write a model's adapter as peft reads it.

        Args:
            base: folder of the model that it belongs to.
        """
        files, _ = _written(await self.crew.order(Export(model, str(folder), adapter=True)))
        _join(folder, sorted(files))
        (folder / "adapter_config.json").write_text(json.dumps(config.peft(str(base)), indent=2))

    async def save(self, folder: Path) -> dict[str, str]:
        """Write everything that is trained; checksums by file."""
        files, _ = _written(await self.crew.order(Save(str(folder))))
        return files

    def _lower(self, models: tuple[str, ...], count: int) -> Lowered:
        """Of a training step; searched anew once times are known."""
        key = (models, count)
        if key not in self._lowered:
            problem = self._problem(models, count, train=True)
            schedule = self._schedule(problem)
            lowered = Lowered(programs(problem, schedule), measure(problem, schedule).makespan_s)
            if not self._measured(models):
                return lowered
            self._lowered[key] = lowered
        return self._lowered[key]

    def _schedule(self, problem: PipelineProblem) -> PipelineSchedule:
        if self.fusion is Fusion.OFF or len(problem.models) == 1:
            return zero_bubble(problem) if self.split else one_after_another(problem)
        return greedy(problem) if self.fusion is Fusion.GREEDY else searched(problem, SEARCH).schedule

    def _measured(self, models: Sequence[str]) -> bool:
        return all((name, 0, Kind.B) in self._times for name in models)

    def _problem(self, models: Sequence[str], count: int, *, train: bool) -> PipelineProblem:
        pipelines = []
        for name in models:
            plan = self._plans[name]
            forward_s, backward_s, weight_s = (
                tuple(self._time(plan, stage, kind) for stage in range(len(plan.ranks))) for kind in Kind
            )
            pipelines.append(
                PipelinedModel(
                    count,
                    plan.ranks,
                    forward_s,
                    backward_s if train else (),
                    weight_s if train and self.split else None,
                    name=name,
                )
            )
        return PipelineProblem(self.crew.config.ranks, tuple(pipelines))

    def _time(self, plan: ModelPlan, stage: int, kind: Kind) -> float:
        """Measured, or presumed: a layer is a unit, a whole backward two."""
        presumed = plan.layers[stage] * (2.0 if kind is Kind.B and not self.split else 1.0)
        return self._times.get((plan.name, stage, kind), presumed)

    def _learn(self, models: Sequence[str], replies: Sequence[Reply]) -> None:
        """Take the mean times of a step's actions."""
        found: dict[tuple[str, int, Kind], list[int]] = {}
        for reply in replies:
            for ran in reply.ran if isinstance(reply, Trained) else ():
                key = (models[ran.action.model], ran.action.stage, ran.action.kind)
                found.setdefault(key, []).append(ran.end_ns - ran.begin_ns)
        self._times |= {key: sum(times) / len(times) / 1e9 for key, times in found.items()}


def _copy_rest(source: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    for pattern in KEPT:
        for path in source.glob(pattern):
            if path.name != INDEX:
                shutil.copy(path, folder)


def _join(folder: Path, files: Sequence[str]) -> None:
    """Make one file of the stages' adapters."""
    weights = {name: value for file in files for name, value in weights_file.read(folder / file).items()}
    weights_file.write(folder / ADAPTER, weights)
    for file in files:
        (folder / file).unlink()


def _figures(replies: Sequence[Reply]) -> dict[str, float]:
    """Of all blocks: losses add up, other figures are means."""
    said: dict[str, list[dict[str, float]]] = {}
    found: dict[str, float] = {}
    for reply in replies:
        assert isinstance(reply, Trained), f"a rank answered {type(reply).__name__}"
        for model, figures in reply.figures.items():
            said.setdefault(model, []).append(figures)
        found |= {f"{model}/norm": norm for model, norm in reply.norms.items()}
    for model, parts in said.items():
        whole = sum(part["weight"] for part in parts)
        for key in parts[0]:
            total = sum(part[key] * (1.0 if key == "loss" else part["weight"] / whole) for part in parts)
            found[f"{model}/{key}"] = total
        del found[f"{model}/weight"]
    return found


def _written(replies: Sequence[Reply]) -> tuple[dict[str, str], dict[str, str]]:
    files: dict[str, str] = {}
    weights: dict[str, str] = {}
    for reply in replies:
        if not isinstance(reply, Written):
            raise EngineFailure(f"a rank answered {type(reply).__name__} where files were to be written")
        files |= reply.files
        weights |= reply.weights
    return files, weights
