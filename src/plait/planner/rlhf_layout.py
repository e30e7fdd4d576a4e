"""How the devices of a cluster are cut for each task of an iteration: drawing, reading, training.

Drawing and reading run on instances of one node or less, training on blocks of pipelines that Actor and
Critic share (one tensor-parallel width for both), copied over the rest of the cluster. A layout is chosen by
what serial stages take with it, among those that fit into memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from plait.cost.reading import Readers, stated
from plait.cost.roofline import Roofline
from plait.planner.cluster import Cluster
from plait.planner.rlhf_job import RlhfJob
from plait.planner.tail import TailModel, fitted_steps
from plait.rlhf.core import SERIAL
from plait.search.pipelines.bounds import bounds
from plait.search.pipelines.fuse import Share, even, fused
from plait.spec.cluster import Device, Link
from plait.spec.errors import UserError
from plait.spec.schedule import PipelinedModel, PipelineProblem
from plait.spec.shape import ModelShape
from plait.spec.step import Row, Step

MEMORY = 0.9
"""Share of a device's memory that a task may fill."""
FIXED_BYTES, MOMENT_BYTES = 4, 12
"""Of each parameter: weight and gradient; 32-bit weight and two moments, which copies share out."""
ACTIVATION_BYTES = 34
"""Of a token and a hidden unit in a layer (Korthikanti et al. 2022), shared by tensor-parallel devices."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A cluster with what large models reach on it."""

    cluster: Cluster
    half_tokens: float = 512.0
    """Tokens of a micro-batch at which a device reaches half of its efficiency."""
    host_bandwidth: float = 50e9
    """Bytes/s from a host's memory to each device: models that have no room wait there."""
    switch_s: float = 0.15
    """An instance that drew begins to read."""

    def pipeline_device(self, tokens: float) -> Device:
        """What a device does for micro-batches of so many tokens."""
        device = self.cluster.device
        return replace(device, efficiency=device.efficiency * tokens / (tokens + self.half_tokens), step_ns=0)

    @property
    def device_link(self) -> Link:
        """Each device's share of its node's way to the others."""
        remote, width = self.cluster.remote, self.cluster.devices_per_node
        return Link(remote.bandwidth / width, remote.latency_ns)


@dataclass(frozen=True, slots=True)
class Drawing:
    """Instances that draw and read."""

    instances: int
    tp: int
    model: TailModel
    reading: Readers

    def __str__(self) -> str:
        return f"{self.instances} instances of tp {self.tp}"


@dataclass(frozen=True, slots=True)
class Training:
    """Blocks of ranks; a rank is `tp` devices with a stage of each model."""

    tp: int
    stages: tuple[int, int]
    """Of Actor and Critic."""
    blocks: int
    problem: PipelineProblem
    """Of one block and one mini-batch."""
    reduce_s: tuple[float, float]
    """Summing up the gradients of a stage over all its copies, of Actor and Critic. Each takes the sums of a
    share; the new weights of the others come as the next forwards go."""
    optimiser_s: float
    """A step of both optimisers, after that."""

    def __str__(self) -> str:
        actor, critic = self.stages
        return f"{self.blocks} blocks of tp {self.tp}: Actor pp {actor}, Critic pp {critic}"


def drawings(job: RlhfJob, machine: Machine) -> list[Drawing]:
    """All that fit.

    Raises:
        UserError: none does.
    """
    cluster, (actor, critic) = machine.cluster, job.shapes
    found, refusal = [], None
    for tp in _powers(cluster.devices_per_node):
        instances = cluster.devices // tp
        if instances > job.samples:
            continue
        try:
            drawn = Roofline(cluster.device, actor, tp, cluster.local)
            slots = drawn.kv_slots(MEMORY)
        except UserError as error:
            refusal = error
            continue
        if slots < job.prompt + job.longest + 32:
            continue
        read = (actor, critic, critic)  # reference, reward model, Critic
        readers = tuple(Roofline(cluster.device, shape, tp, cluster.local) for shape in read)
        rows = -(-job.samples // instances)
        room = (slots - rows * (job.prompt + job.longest)) * actor.kv_bytes_per_token
        away = max(0, sum(shape.weight_bytes for shape in read) - max(0, room))
        load_s = machine.switch_s + away / tp / machine.host_bandwidth
        reading = Readers(readers, round(load_s * 1e9))
        steps = fitted_steps(drawn, job.prompt, round(job.mean_tokens) - job.prompt, rows)
        move_ns = actor.kv_bytes_per_token / cluster.remote.bandwidth * 1e9
        model = TailModel(instances, steps, stated(reading, round(job.mean_tokens)), slots, move_ns)
        found.append(Drawing(instances, tp, model, reading))
    if not found:
        raise refusal or UserError(
            "the Actor fits no instance of this cluster: use larger devices", "cluster"
        )
    return found


def trainings(job: RlhfJob, machine: Machine) -> list[Training]:
    """All that fit.

    Raises:
        UserError: none does.
    """
    depths = list(_powers(machine.cluster.nodes))
    every = [training(job, machine, (actor, critic)) for actor in depths for critic in depths]
    found = [each for each in every if each is not None]
    if not found:
        raise UserError(
            "Actor and Critic cannot be trained on this cluster: give it more devices, or fewer mini-batches",
            "cluster",
        )
    return found


def training(job: RlhfJob, machine: Machine, stages: tuple[int, int]) -> Training | None:
    """Blocks with so many stages of Actor and Critic; None where that does not fit."""
    cluster, shapes, width = machine.cluster, job.shapes, max(stages)
    tp = cluster.devices_per_node
    blocks, rest = divmod(cluster.nodes, width)
    samples, left = divmod(job.samples // job.mini_batches, job.micro_batch * max(blocks, 1))
    deep = any(count > len(shape.layers) for count, shape in zip(stages, shapes, strict=True))
    uneven = any(width % count or samples * count % width or samples * count < width for count in stages)
    if rest or left or deep or uneven or not blocks:
        return None
    parts = [
        _pipeline(job, machine, shape, count, samples * count // width, name)
        for shape, count, name in zip(shapes, stages, ("actor", "critic"), strict=True)
    ]
    link = machine.device_link
    problem = fused([Share(parts[0]), Share(parts[1], reverse=True)], width)
    problem = replace(problem, latency_s=link.latency_ns / 1e9, bandwidth=link.bandwidth)
    copies = [blocks * width // count for count in stages]  # that sum up their gradients
    held = [
        shape.weight_bytes / 2 / count / tp * (FIXED_BYTES + MOMENT_BYTES / each)
        for shape, count, each in zip(shapes, stages, copies, strict=True)
    ]
    flights = max(min(width, part.micro_batches) * part.kept_bytes[0] for part in parts)
    if sum(held) + flights > MEMORY * cluster.device.memory_bytes:
        return None
    reduce_s = [
        shape.weight_bytes / count / tp * (each - 1) / each / link.bandwidth
        for shape, count, each in zip(shapes, stages, copies, strict=True)
    ]
    optimiser_s = 2 * sum(held) / cluster.device.bandwidth
    return Training(tp, stages, blocks, problem, (reduce_s[0], reduce_s[1]), optimiser_s)


def _pipeline(
    job: RlhfJob, machine: Machine, shape: ModelShape, stages: int, micro_batches: int, name: str
) -> PipelinedModel:
    """Stages of equal time."""
    tp = machine.cluster.devices_per_node
    tokens = job.mean_tokens * job.micro_batch
    cost = Roofline(machine.pipeline_device(tokens), shape, tp, machine.cluster.local)
    rows = tuple(Row(number, 0, round(job.mean_tokens)) for number in range(job.micro_batch))
    forward_s = cost.step_ns(Step(0, (0,), rows)) / 1e9 / stages
    kept = ACTIVATION_BYTES * tokens * shape.hidden * len(shape.layers) / stages / tp
    sent = 2.0 * tokens * shape.hidden / tp
    return replace(even(stages, micro_batches, forward_s, kept, name), sent_bytes=sent)


def serial_step_s(training: Training) -> float:
    """A mini-batch of the Actor as 1F1B, then one of the Critic, with what follows each."""
    actor_s, critic_s = (_alone_s(training.problem, name) for name in ("actor", "critic"))
    return actor_s + critic_s + serial_gradients_s(training) + training.optimiser_s


def serial_gradients_s(training: Training) -> float:
    """Sums of gradients that nothing hides: the Actor's are summed while the Critic trains."""
    critic_s = _alone_s(training.problem, "critic")
    return max(0.0, training.reduce_s[0] - critic_s) + training.reduce_s[1]


def _alone_s(problem: PipelineProblem, name: str) -> float:
    """1F1B of equal stages: every micro-batch, and as many more as there are stages to fill and empty."""
    one = next(each for each in problem.models if each.name == name)
    turn_s = one.forward_s[0] + one.backward_s[0]
    hop_s = problem.delay_s(one, 0, 1) if one.stages > 1 else 0.0
    return (one.micro_batches + one.stages - 1) * turn_s + 2 * (one.stages - 1) * hop_s


def fused_step_s(training: Training) -> float:
    """The least that a fused mini-batch can take, if both models end on one rank at the same time."""
    return bounds(training.problem).makespan_s + sum(training.reduce_s) + training.optimiser_s


def best_drawing(job: RlhfJob, machine: Machine) -> Drawing:
    """The one with which serial stages take least; raises as `drawings`."""
    samples = job.draw(np.random.default_rng(0), job.samples)
    return min(drawings(job, machine), key=lambda each: each.model.forecast_ns(samples, [SERIAL])[0])


def best_training(job: RlhfJob, machine: Machine, *, fused: bool) -> Training:
    """The one with which a mini-batch takes least; raises as `trainings`."""
    return min(trainings(job, machine), key=fused_step_s if fused else serial_step_s)


def _powers(most: int) -> Iterator[int]:
    power = 1
    while power <= most:
        yield power
        power *= 2
