"""`RlhfPlan`: an iteration of RLHF on a cluster, stage by stage: what it takes, fused or not.

Generation and scoring are simulated by the core that serves live runs. Training is one schedule of the
pipeline search per mini-batch, whose actions are timed by the same roofline. What is left is added up:
sums of gradients that nothing hides, the optimisers, and weights to the instances that draw.

    last mini-batch   Actor --new weights to all nodes-->  draw
                         `--> Critic --------------------->

The last mini-batch runs fused, and then the weights go; or the Actor goes first, and its weights go while the
Critic trains. Live runs choose between the same two by the same times (`runtime.Alignment`).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from functools import cached_property

import numpy as np

from plait.planner.rlhf_job import RlhfJob
from plait.planner.rlhf_layout import Drawing, Machine, Training, serial_gradients_s
from plait.planner.tail import TailTuner, Tuned
from plait.rlhf.core import SERIAL, Tail
from plait.search.pipelines.builders import alone_s, one_f_one_b, serial_s
from plait.search.pipelines.find import ScheduleSearch, greedy, searched
from plait.search.pipelines.fuse import split_backward
from plait.search.pipelines.timing import ScheduleTiming, measure
from plait.serving.manager import ManagerConfig
from plait.sim.copies import Network
from plait.sim.rollout import RolloutScenario, RolloutTimes, SampleLength
from plait.sim.scenario import Scenario
from plait.spec.cluster import Instance, Placement
from plait.spec.schedule import Kind, PipelineProblem, PipelineSchedule
from plait.workload.journal import Observer

SEEN = 5
"""Iterations whose lengths a tail is tuned from."""


class Intra(StrEnum):
    """How Actor and Critic share the ranks."""

    SERIAL = "serial"
    """One after the other, each as 1F1B."""
    GREEDY = "greedy"
    """Whatever can run runs."""
    SEARCHED = "searched"
    """The best schedule found."""
    SPLIT = "split"
    """The same, with the backward of the weights apart."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """Seconds of an iteration."""

    weights_s: float
    """New weights to the instances that draw: by how much they make the last mini-batch longer."""
    generation_s: float
    """Until the last sample is drawn."""
    inference_s: float
    """Scoring after that."""
    training_s: float
    """Pipelines of all mini-batches."""
    gradients_s: float
    """Sums over blocks that nothing hides."""
    optimiser_s: float

    @property
    def total_s(self) -> float:
        """All of it."""
        return float(sum(getattr(self, each.name) for each in fields(self)))

    @property
    def sampling_s(self) -> float:
        """Generation and inference."""
        return self.generation_s + self.inference_s

    @property
    def other(self) -> float:
        """Share of the total that is neither generation nor inference nor training; a step of training ends
        with its optimisers."""
        return self.weights_s / self.total_s


@dataclass(frozen=True, slots=True)
class Stepped:
    """A mini-batch: its schedule, if one was sought, and its times."""

    pipeline_s: float
    gradients_s: float
    optimiser_s: float
    problem: PipelineProblem | None = None
    schedule: PipelineSchedule | None = None

    @property
    def total_s(self) -> float:
        """All of it."""
        return self.pipeline_s + self.gradients_s + self.optimiser_s


class RlhfPlan:
    """See the module."""

    def __init__(self, job: RlhfJob, machine: Machine, drawing: Drawing, training: Training) -> None:
        self.job, self.machine, self.drawing, self.training = job, machine, drawing, training

    def tuned(self, seed: int = 0) -> Tuned:
        """The tail that follows from other samples of the job's lengths."""
        rng = np.random.default_rng((seed, 1))
        seen = self.job.draw(rng, SEEN * self.job.samples)
        return TailTuner(self.drawing.model).tune(seen, self.job.samples, rng)

    def samples(self, seed: int = 0) -> list[SampleLength]:
        """An iteration's."""
        return self.job.draw(np.random.default_rng((seed, 2)), self.job.samples)

    def rollout(
        self, samples: Sequence[SampleLength], tail: Tail = SERIAL, observers: Iterable[Observer] = ()
    ) -> RolloutTimes:
        """Generation and scoring by the core in virtual time."""
        drawing, cluster = self.drawing, self.machine.cluster
        node = cluster.devices_per_node // drawing.tp
        placement = Placement(
            tuple(Instance(i, tp=drawing.tp, node=i // node) for i in range(drawing.instances))
        )
        shape = self.job.shapes[0]
        network = Network(shape.kv_bytes_per_token, cluster.local, cluster.remote)
        # Steps take what the fitted coefficients say: the roofline itself is five times as slow to ask.
        scenario = Scenario(
            placement, drawing.model.steps, drawing.model.slots, ManagerConfig(model=self.job.actor), network
        )
        reading = drawing.reading
        world = RolloutScenario(
            scenario,
            reading,
            self.job.longest,
            readers=len(reading.models),
            load_tokens=drawing.model.reading.load_tokens,
        )
        return world.run(samples, tail, observers)

    def step(self, intra: Intra, search: ScheduleSearch | None = None) -> Stepped:
        """A mini-batch; stages one after the other where fused ones would take longer."""
        training = self.training
        serial = Stepped(serial_s(training.problem), serial_gradients_s(training), training.optimiser_s)
        if intra is Intra.SERIAL:
            return serial
        problem = split_backward(training.problem) if intra is Intra.SPLIT else training.problem
        schedule = greedy(problem) if intra is Intra.GREEDY else searched(problem, search).schedule
        return min(serial, self.stepped(problem, schedule), key=lambda each: each.total_s)

    def stepped(self, problem: PipelineProblem, schedule: PipelineSchedule) -> Stepped:
        """A mini-batch by a schedule: gradients of a stage are summed once its last backward is over."""
        training, timing = self.training, measure(problem, schedule)
        end_s = max(_summed_s(timing, schedule, problem, training.reduce_s))
        pipeline_s = timing.makespan_s
        return Stepped(pipeline_s, max(0.0, end_s - pipeline_s), training.optimiser_s, problem, schedule)

    def bars(self, step: Stepped) -> Iterator[tuple[int, str, float, float]]:
        """(rank, what, begin, end) of a mini-batch, in seconds: what is a model with the kind of action."""
        if step.problem is None or step.schedule is None:
            yield from self._serial_bars()
            return
        yield from _bars(step.problem, step.schedule, 0.0)

    def _serial_bars(self) -> Iterator[tuple[int, str, float, float]]:
        begin_s = 0.0
        for name in ("actor", "critic"):
            models = tuple(each for each in self.training.problem.models if each.name == name)
            alone = replace(self.training.problem, models=models)
            schedule = one_f_one_b(alone)
            yield from _bars(alone, schedule, begin_s)
            begin_s += measure(alone, schedule).makespan_s

    def ledger(self, times: RolloutTimes, step: Stepped) -> Ledger:
        """An iteration's."""
        count = self.job.mini_batches
        return Ledger(
            weights_s=self.weights_s(step),
            generation_s=times.drawn_ns / 1e9,
            inference_s=(times.scored_ns - times.drawn_ns) / 1e9,
            training_s=count * step.pipeline_s,
            gradients_s=count * step.gradients_s,
            optimiser_s=count * step.optimiser_s,
        )

    @cached_property
    def gather_s(self) -> float:
        """Giving all nodes the Actor's new weights, of which each has stepped as large a part as the others:
        a ring, so that a node's link carries every byte once. Each device takes in what its own share of
        that link brings, and the rest of its instance's share of the model from its neighbours meanwhile.

        Live, on one host, there are no links: ranks write what they hold into shared memory once, and every
        instance reads it from there.
        """
        cluster, weight_bytes = self.machine.cluster, self.job.shapes[0].weight_bytes
        others = cluster.nodes - 1
        between_s = weight_bytes * others / cluster.nodes / cluster.remote.bandwidth
        between_s += others * cluster.remote.latency_ns / 1e9
        inside = max(0.0, 1 / self.drawing.tp - 1 / cluster.devices_per_node)
        return max(between_s, weight_bytes * inside / cluster.local.bandwidth)

    def trained_s(self, step: Stepped) -> float:
        """From the last score until the next iteration can begin."""
        return self.job.mini_batches * step.total_s + self.weights_s(step)

    def weights_s(self, step: Stepped) -> float:
        """By how much giving away the weights makes the last mini-batch longer, the others being `step`."""
        apart_s, ready_s = self._apart
        # The sums of the Critic's gradients go over the same links.
        gathered_s = ready_s + self.gather_s + self.training.reduce_s[1]
        return min(self.gather_s, max(0.0, max(apart_s, gathered_s) - step.total_s))

    @cached_property
    def _apart(self) -> tuple[float, float]:
        """A mini-batch with the Actor first: when it ends, and when the Actor's weights are new."""
        serial, actor_s = self.step(Intra.SERIAL), alone_s(self.training.problem)["actor"]
        return serial.total_s, actor_s + self.training.reduce_s[0] + self.training.optimiser_s


def _bars(
    problem: PipelineProblem, schedule: PipelineSchedule, begin_s: float
) -> Iterator[tuple[int, str, float, float]]:
    timing = measure(problem, schedule)
    for rank, row in enumerate(schedule.rows):
        for action, start_s, end_s in zip(row, timing.starts_s[rank], timing.ends_s[rank], strict=True):
            name = f"{problem.models[action.model].name} {action.kind.value}"
            yield rank, name, begin_s + start_s, begin_s + end_s


def _summed_s(
    timing: ScheduleTiming,
    schedule: PipelineSchedule,
    problem: PipelineProblem,
    reduce_s: tuple[float, float],
) -> list[float]:
    """When each rank has all sums, one model after the other."""
    found = []
    for row, ends in zip(schedule.rows, timing.ends_s, strict=True):
        last: dict[str, float] = {}
        for action, end_s in zip(row, ends, strict=True):
            if action.kind is not Kind.F:
                last[problem.models[action.model].name] = end_s
        at_s = 0.0
        for name, end_s in sorted(last.items(), key=lambda each: each[1]):
            at_s = max(at_s, end_s) + reduce_s[("actor", "critic").index(name)]
        found.append(at_s)
    return found
