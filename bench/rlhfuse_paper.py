"""An iteration of RLHF at 64 to 1,024 GPUs, fused and not, beside what was published for RLHFuse.

Everything is simulated. Generation and scoring are the core in virtual time, with (R_t, m) from the tuner;
training is the searched schedule of Actor and Critic, timed by the same roofline; sums of gradients and
optimisers are added up, and by how much weights on their way to all nodes make the last mini-batch longer.
The cluster: nodes of 8 Hopper GPUs (989 TFLOP/s, of which half; 3.35 TB/s, of which 0.6) joined by 8 x 200
Gb/s; LLaMA pairs of 13B, 33B and 65B in pipelines as deep as the released search's (4, 8, 16 stages of tp 8;
fewer where there are fewer nodes); 512 samples, mini-batches of 64, micro-batches of 1; lengths lognormal
(median 150, 200, 250) cut at 512, 1,024, 2,048. The unfused base has the same layouts, kernels and balance.
DeepSpeed-Chat and ReaLHF are policies in the same cost model: models of those systems, not those systems.

A cell's value is the gain of both fusions; in brackets that of the first and of the second alone.

Bars: both fusions are nowhere slower than the base; the stages' gains are where the published ranges begin
where scoring takes as much of generation as these imply (0.35); other overheads stay below 3 % on average.
"""

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from alignment.policies import deepspeed_chat, realhf
from claim import Claim, arguments, at_least, at_most, finish, reported, together

from plait.cost.cost import Cost
from plait.planner.cluster import Cluster
from plait.planner.rlhf_job import RlhfJob
from plait.planner.rlhf_layout import Drawing, Machine, best_drawing, training
from plait.planner.rlhf_plan import Intra, Ledger, RlhfPlan, Stepped
from plait.rlhf.core import SERIAL
from plait.search.pipelines.find import ScheduleSearch
from plait.spec.cluster import Device, Link
from plait.spec.schedule import PipelineSchedule
from plait.spec.step import Step

HOPPER = Device("hopper", 989e12, 0.6 * 3.35e12, 80 * 1024**3, step_ns=1_000_000, efficiency=0.5)
NVLINK, NODE = Link(300e9, 500), Link(200e9, 20_000)
PAIRS = (("13b", "33b"), ("33b", "13b"), ("33b", "65b"), ("65b", "33b"))
LENGTHS = ((512, 150.0, 0.9), (1024, 200.0, 0.9), (2048, 250.0, 1.0))
GPUS = (64, 256, 512, 1024)
DEPTH = {"13b": 4, "33b": 8, "65b": 16}
IMPLIED = 0.35
"""What scoring takes of generation where the published gains of 1.2 to 1.6 are possible."""


@dataclass(frozen=True)
class Cell:
    """One configuration."""

    gpus: int
    pair: tuple[str, str]
    length: tuple[int, float, float]

    def __str__(self) -> str:
        return f"{self.pair[0]}/{self.pair[1]}, {self.length[0]} tokens, {self.gpus} GPUs"

    def plan(self) -> RlhfPlan | None:
        """None where it does not fit."""
        longest, median, sigma = self.length
        actor, critic = (f"llama-{name}" for name in self.pair)
        job = RlhfJob(actor=actor, critic=critic, longest=longest, median=median, sigma=sigma)
        machine = Machine(Cluster(self.gpus // 8, 8, HOPPER, NVLINK, NODE))
        stages = (min(DEPTH[self.pair[0]], self.gpus // 8), min(DEPTH[self.pair[1]], self.gpus // 8))
        cut = training(job, machine, stages)
        return None if cut is None else RlhfPlan(job, machine, best_drawing(job, machine), cut)


@dataclass(frozen=True)
class Outcome:
    """A cell's iteration: the base, each fusion alone, both."""

    cell: Cell
    base: Ledger
    inter: Ledger
    intra: Ledger
    both: Ledger
    implied: tuple[Ledger, Ledger] | None
    """Base and both fusions where scoring takes as long as the published gains imply."""
    models: tuple[float, float]
    """Seconds of ReaLHF's and DeepSpeed-Chat's policies."""

    @property
    def gain(self) -> float:
        """Of both."""
        return self.base.total_s / self.both.total_s

    @property
    def rho(self) -> float:
        """Scoring over generation in the base."""
        return self.base.inference_s / self.base.generation_s


class Schedules:
    """One search for each pair and cluster: lengths change all times of a problem alike, or nearly."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._found: dict[tuple[int, tuple[str, str]], PipelineSchedule | None] = {}

    def step(self, cell: Cell, plan: RlhfPlan) -> Stepped:
        """The fused mini-batch, or the serial one where that is shorter."""
        key = (cell.gpus, cell.pair)
        if key not in self._found:
            search = ScheduleSearch(seconds=self._seconds, threads=2)
            self._found[key] = plan.step(Intra.SEARCHED, search).schedule
        schedule, serial = self._found[key], plan.step(Intra.SERIAL)
        if schedule is None:
            return serial
        fused = plan.stepped(plan.training.problem, schedule)
        return min(serial, fused, key=lambda each: each.total_s)


def run(cell: Cell, plan: RlhfPlan, schedules: Schedules, seed: int) -> Outcome:
    """All policies on the same samples."""
    samples = plan.samples(seed)
    serial_step, fused_step = plan.step(Intra.SERIAL), schedules.step(cell, plan)
    unfused, fused = (plan.rollout(samples, tail) for tail in (SERIAL, plan.tuned(seed).tail))
    fused = min(unfused, fused, key=lambda each: each.scored_ns)
    pairs = [(unfused, serial_step), (fused, serial_step), (unfused, fused_step), (fused, fused_step)]
    base, inter, intra, both = (plan.ledger(*pair) for pair in pairs)
    implied = None
    if cell.gpus == 256:
        slower = _with_scoring(plan, IMPLIED * base.generation_s / base.inference_s)
        serial, fused = (slower.rollout(samples, tail) for tail in (SERIAL, slower.tuned(seed).tail))
        implied = slower.ledger(serial, serial_step), slower.ledger(fused, fused_step)
    models = realhf(plan, samples, unfused).total_s, deepspeed_chat(plan, samples).total_s
    return Outcome(cell, base, inter, intra, both, implied, models)


@dataclass(frozen=True)
class Slower:
    """A cost of steps that takes so many times as long."""

    inner: Cost
    times: float

    def step_ns(self, step: Step) -> int:
        """See `Cost`."""
        return round(self.inner.step_ns(step) * self.times)


def _with_scoring(plan: RlhfPlan, times: float) -> RlhfPlan:
    drawing = plan.drawing
    reading = replace(drawing.reading, models=tuple(Slower(each, times) for each in drawing.reading.models))
    line = drawing.model.reading
    slower = replace(line, token_ns=line.token_ns * times, piece_ns=line.piece_ns * times)
    made = Drawing(drawing.instances, drawing.tp, replace(drawing.model, reading=slower), reading)
    return RlhfPlan(plan.job, plan.machine, made, plan.training)


def claims(outcomes: Sequence[Outcome]) -> list[Claim]:
    """Cell by cell, and what they come to."""
    found = [
        reported(
            f"{each.cell}: G {each.base.generation_s:.1f} I {each.base.inference_s:.1f} "
            f"T {each.base.training_s + each.base.gradients_s:.1f} s; G+I {_ratio(each, 'sampling_s'):.2f}x, "
            f"T {_training(each):.2f}x; both",
            each.gain,
            (each.base.total_s / each.inter.total_s, each.base.total_s / each.intra.total_s),
        )
        for each in outcomes
    ]
    at = [each for each in outcomes if each.cell.gpus == 256]
    little = [each for each in outcomes if each.gain < 1.05]
    found += [
        at_least("least gain of both fusions over the base", min(each.gain for each in outcomes), 1.0),
        _middle("256 GPUs: gain of an iteration (published 1.2 to 1.4)", [each.gain for each in at]),
        _middle("256 GPUs: gain of G+I (published 1.2 to 1.6)", [_ratio(each, "sampling_s") for each in at]),
        _middle("256 GPUs: gain of T (published 1.2 to 1.3)", [_training(each) for each in at]),
        _middle("256 GPUs: scoring over generation (published gains imply 0.2 to 0.6)", [e.rho for e in at]),
        *_implied(at),
        *_overheads(at),
        _middle("256 GPUs: other overheads, share", [each.both.other for each in at]),
        _middle(
            "256 GPUs: over a model of ReaLHF (published, of the system, 1.4 to 2.4)",
            [each.models[0] / each.both.total_s for each in at],
        ),
        _middle(
            "256 GPUs: over a model of DeepSpeed-Chat (published, of the system, 2.5 to 3.7)",
            [each.models[1] / each.both.total_s for each in at],
        ),
        reported(f"cells of {len(outcomes)} where both gain less than 5 %", len(little), (0, len(outcomes))),
    ]
    return found


def _overheads(at: Sequence[Outcome]) -> list[Claim]:
    """A bar for the whole grid alone: the shorter the samples, the larger the share of the weights."""
    if len({each.cell.length for each in at}) < len(LENGTHS):
        return []
    shares = [each.both.other for each in at]
    return [at_most("256 GPUs: other overheads, mean share", statistics.mean(shares), 0.03)]


def _implied(at: Sequence[Outcome]) -> list[Claim]:
    pairs = [each.implied for each in at if each.implied is not None]
    sampling = [base.sampling_s / both.sampling_s for base, both in pairs]
    totals = [base.total_s / both.total_s for base, both in pairs]
    said = f"256 GPUs, scoring stated at {IMPLIED} of generation"
    return [
        at_least(f"{said}: gain of G+I, mean (published from 1.2)", statistics.mean(sampling), 1.2),
        _middle(f"{said}: gain of an iteration", totals),
    ]


def _ratio(each: Outcome, name: str) -> float:
    return float(getattr(each.base, name) / getattr(each.both, name))


def _training(each: Outcome) -> float:
    base, both = ((led.training_s + led.gradients_s + led.optimiser_s) for led in (each.base, each.both))
    return base / both


def _middle(claim: str, values: Sequence[float]) -> Claim:
    return reported(claim, statistics.mean(values), (min(values), max(values)))


def main() -> None:
    """See the module."""
    options = arguments(__doc__)
    gpus = (256,) if options.quick else GPUS
    lengths = LENGTHS[:1] if options.quick else LENGTHS
    schedules = Schedules(3.0 if options.quick else 5.0)
    outcomes = []
    for count in gpus:
        for pair in PAIRS:
            for length in lengths:
                cell = Cell(count, pair, length)
                if (plan := cell.plan()) is None:
                    continue
                outcomes.append(run(cell, plan, schedules, options.seed))
                print(f"{cell}: {outcomes[-1].gain:.3f}x", file=sys.stderr, flush=True)
    finish(
        "rlhfuse_paper", together("RLHF with fused stages at scale (simulated)", claims(outcomes)), options
    )


if __name__ == "__main__":
    main()
