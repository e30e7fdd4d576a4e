"""Other systems' ways through an iteration, as models: formulas over the same cost model, not those systems.

What is assumed of each is said where it is computed; figures that come of it are never measurements.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from plait.planner.rlhf_layout import serial_gradients_s
from plait.planner.rlhf_plan import Intra, RlhfPlan
from plait.sim.rollout import RolloutTimes, SampleLength
from plait.spec.shape import ModelShape

EAGER_LAYER_S = 50e-6
"""Launching a layer's kernels one by one, in a decode step without captured graphs."""
DS_MINI_BATCH = 256
"""Samples: DeepSpeed-Chat was given larger mini-batches in the published comparison, too."""


@dataclass(frozen=True)
class Times:
    """Seconds of the stages."""

    generation_s: float
    inference_s: float
    training_s: float
    other_s: float

    @property
    def total_s(self) -> float:
        """All of it."""
        return self.generation_s + self.inference_s + self.training_s + self.other_s


def realhf(plan: RlhfPlan, samples: Sequence[SampleLength], times: RolloutTimes) -> Times:
    """ReaLHF, as a model: a layout for each task as ours, stages one after the other, batches that stay
    whole until their longest sample ends, and samples dealt out to blocks whatever their lengths.

    Args:
        times: of our serial stages; reading is the same.
    """
    step = plan.step(Intra.SERIAL)
    inference_s = (times.scored_ns - times.drawn_ns) / 1e9
    blocks, count = plan.training.blocks, plan.job.mini_batches
    tokens = [each.prompt + each.response for each in samples]
    size = len(tokens) // (blocks * count)
    parts = [sum(tokens[first : first + size]) for first in range(0, len(tokens), size)]
    worst = sum(max(parts[at * blocks : (at + 1) * blocks]) for at in range(count)) / (sum(tokens) / blocks)
    training_s = count * (step.pipeline_s * worst + serial_gradients_s(plan.training) + step.optimiser_s)
    return Times(_static_s(plan, samples, 0.0), inference_s, training_s, plan.gather_s)


def deepspeed_chat(plan: RlhfPlan, samples: Sequence[SampleLength]) -> Times:
    """DeepSpeed-Chat, as a model: the hybrid engine draws with tensor parallelism inside a node, in static
    batches and without captured graphs; all else is ZeRO-3 on all devices, padded to the longest sample,
    with every layer's weights gathered for each pass (what a node gathers comes in once). Gathering hides
    behind computing or the other way round. Four models read: it computes the Actor's log-probabilities anew.
    """
    actor, critic = plan.job.shapes
    generation_s = _static_s(plan, samples, EAGER_LAYER_S * len(actor.layers))
    longest = max(each.prompt + each.response for each in samples)
    read = sum(_zero3_s(plan, shape, len(samples), longest, 1) for shape in (actor, actor, critic, critic))
    steps = -(-len(samples) // DS_MINI_BATCH)
    trained = sum(_zero3_s(plan, shape, DS_MINI_BATCH, longest, 3) for shape in (actor, critic))
    return Times(generation_s, read, steps * trained, plan.gather_s)


def _static_s(plan: RlhfPlan, samples: Sequence[SampleLength], more_s: float) -> float:
    """The slowest instance: its batch takes as many steps as its longest sample, each with all rows."""
    drawing, steps = plan.drawing, plan.drawing.model.steps
    found = []
    for instance in range(drawing.instances):
        mine = samples[instance :: drawing.instances]
        count = max((each.response for each in mine), default=0)
        context = sum(each.prompt for each in mine) * count + len(mine) * count * (count + 1) / 2
        ns = count * (steps.decode_ns + steps.decode_row_ns * len(mine)) + steps.decode_context_ns * context
        found.append(ns / 1e9 + count * more_s)
    return float(np.max(found))


def _zero3_s(plan: RlhfPlan, shape: ModelShape, samples: int, tokens: int, passes: int) -> float:
    """So many passes (a forward; a training step counts three) over samples of so many tokens."""
    cluster = plan.machine.cluster
    rounds = -(-samples // cluster.devices)
    device = plan.machine.pipeline_device(tokens)
    flops = tokens * (shape.flops_per_token + shape.flops_per_logits) + tokens**2 / 2 * shape.flops_per_pair
    compute_s = flops / (device.flops * device.efficiency)
    return rounds * passes * max(compute_s, shape.weight_bytes / cluster.remote.bandwidth)
