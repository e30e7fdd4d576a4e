"""DistServe's published figures, as this code gives them: step times, and queues that have closed forms.

Step times are the golden values of its A100 tables (ms, one stage; prefill of one prompt, and decode steps
with 512 tokens of context a row). Queues run through the real serving core in virtual time, with steps of
constant time: one server (M/D/1) for a prefill instance, and several in a row for its pipeline stages, where
requests wait for the slowest stage only.

The comparison with a checkout of LLMServe/DistServe (DISTSERVE_SRC) belongs beside `queue_parts`; it is not
here yet.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import claim
import numpy as np

from plait.cost.coefficients import on_a100
from plait.serving.admission import AdmissionConfig
from plait.serving.batcher import BatcherConfig
from plait.serving.manager import GlobalManager, ManagerConfig
from plait.sim.scenario import Scenario
from plait.sim.stages import StagedWorkers
from plait.sim.workers import Arrival
from plait.sim.world import World
from plait.spec.cluster import Placement
from plait.spec.event import Arrived, Event, WorkerUp
from plait.spec.request import Request
from plait.spec.step import Row, Step
from plait.workload import arrivals, lengths
from plait.workload.result import Recorder
from plait.workload.trace import at_rate

GOLDEN_MS = {
    # model, tp: prefill of 128, 512, 1024, 2048 tokens; decode of 1, 32, 94, 95, 128 rows
    ("opt-13b", 1): (32.26, 73.15, 130.93, 257.69, 20.29, 31.44, 53.73, 50.41, 65.43),
    ("opt-13b", 2): (24.56, 51.50, 88.53, 166.46, 13.53, 20.90, 35.63, 33.94, 42.04),
    ("opt-13b", 4): (17.95, 32.70, 52.61, 93.25, 10.39, 14.38, 22.37, 23.15, 27.55),
    ("opt-66b", 2): (79.53, 190.36, 348.44, 699.96, 48.90, 67.81, 105.64, 79.94, 97.73),
    ("opt-66b", 3): (59.25, 137.39, 247.18, 485.95, 36.20, 48.43, 72.89, 68.53, 84.46),
    ("opt-66b", 4): (49.95, 110.11, 194.15, 375.30, 31.05, 40.19, 58.46, 59.01, 69.97),
    ("opt-66b", 8): (40.19, 81.95, 139.20, 259.01, 23.32, 28.41, 38.59, 48.53, 57.84),
}
VLLM_MS = {
    # prefill of 512 tokens; decode of 32 rows, where it is published
    ("opt-13b", 1): (97.11, 35.13),
    ("opt-13b", 2): (77.02, None),
    ("opt-13b", 4): (58.02, None),
    ("opt-66b", 2): (253.43, 124.01),
    ("opt-66b", 4): (165.01, 55.31),
    ("opt-66b", 8): (121.69, None),
}
PROMPTS, BATCHES = (128, 512, 1024, 2048), (1, 32, 94, 95, 128)
SERVICE_NS = 75_200_000
"""A prefill of 512 tokens by OPT-13B on one A100, as the paper's queueing section has it."""
PROMPT = 512
NS = 1e9


@dataclass(frozen=True)
class Constant:
    """Each stage takes a fixed time, whatever the step."""

    each_ns: tuple[int, ...]

    def step_ns(self, step: Step) -> int:
        return sum(self.each_ns)

    def stages_ns(self, step: Step) -> tuple[int, ...]:
        return self.each_ns


def worst_golden_ms() -> tuple[float, int]:
    """Largest distance from a golden value, and how many there are."""
    distances = []
    for (model, tp), golden in GOLDEN_MS.items():
        cost = on_a100(model, tp, seed_compatible=True)
        found = [cost.step_ns(_prompt(n)) for n in PROMPTS] + [cost.step_ns(_decodes(b)) for b in BATCHES]
        distances += [abs(ns / 1e6 - ms) for ns, ms in zip(found, golden, strict=True)]
    for (model, tp), (prefill_ms, decode_ms) in VLLM_MS.items():
        cost = on_a100(model, tp, engine="vllm", seed_compatible=True)
        distances.append(abs(cost.step_ns(_prompt(512)) / 1e6 - prefill_ms))
        if decode_ms is not None:
            distances.append(abs(cost.step_ns(_decodes(32)) / 1e6 - decode_ms))
    return max(distances), len(distances)


def _prompt(tokens: int) -> Step:
    return Step(0, (0,), (Row(0, 0, tokens, draws=True),))


def _decodes(batch: int) -> Step:
    """512 tokens of context a row."""
    return Step(0, (0,), (), again=tuple(range(batch)), context_tokens=batch * 512)


def mean_ttft_s(stages_ns: tuple[int, ...], rate_hz: float, count: int, seed: int) -> float:
    """Mean TTFT of prompts that each fill a step of one instance, with Poisson arrivals.

    Arrivals are stretched to exactly their rate: most of what one run differs from another is the load that
    chance gave it.
    """
    cost = Constant(stages_ns)
    times = arrivals.poisson(np.random.default_rng(seed), rate_hz, count)
    rows = at_rate(lengths.workload(times, lengths.fixed(PROMPT, count), lengths.fixed(1, count)), rate_hz)
    admission = AdmissionConfig(max_queue=count, max_rows=count)
    batcher = BatcherConfig(step_tokens=PROMPT, depth=len(stages_ns) + 1)
    config = ManagerConfig(admission=admission, batcher=batcher)
    recorder, slots = Recorder(), PROMPT * 4096
    if len(stages_ns) == 1:
        Scenario(Placement.colocated(1), cost, slots, config).run(rows, [recorder.see])
    else:
        asked = [Request(i, row.prompt_tokens, 1) for i, row in enumerate(rows)]
        sent = [Arrival(row.arrival_ns, request, 1) for row, request in zip(rows, asked, strict=True)]
        inputs: list[tuple[int, Event]] = [(0, WorkerUp(0, 0, slots))]
        inputs += [(each.at_ns, Arrived(each.request)) for each in sent]
        World(GlobalManager(config), StagedWorkers(cost, sent), [recorder.see]).run(inputs)
    assert all(record.completed for record in recorder.records), "a request was refused"
    return float(np.mean([record.ttft_ns for record in recorder.records])) / NS


def tandem_s(stages_ns: tuple[int, ...], rate_hz: float) -> float:
    """Mean time in a row of deterministic servers: all services, and the M/D/1 wait at the slowest one.

    With one stage it is D + R D^2 / (2 (1 - R D)); with two of D / 2, D + R D^2 / (4 (2 - R D)).
    """
    slowest = max(stages_ns) / NS
    return sum(stages_ns) / NS + rate_hz * slowest**2 / (2 * (1 - rate_hz * slowest))


def queue_parts(seeds: Sequence[int], count: int) -> list[claim.Claim]:
    """Each queue's mean TTFT against its closed form, in percent; the mean over the seeds."""
    half, sped = SERVICE_NS // 2, round(SERVICE_NS / 1.6)
    queues = [
        ("M/D/1", (SERVICE_NS,), (0.3, 0.5, 0.7)),
        ("M/D/1, tp 2 (1.6 times as fast)", (sped,), (0.5,)),
        ("two stages of D / 2", (half, half), (0.3, 0.7)),
        (
            "stages of 0.2, 0.5 and 0.3 D",
            tuple(round(SERVICE_NS * part) for part in (0.2, 0.5, 0.3)),
            (0.5, 0.7),
        ),
    ]
    found = []
    for number, (name, stages_ns, loads) in enumerate(queues):
        for load in loads:
            rate_hz = load / (max(stages_ns) / NS)
            means = [mean_ttft_s(stages_ns, rate_hz, count, 100 * number + seed) for seed in seeds]
            off = 100 * (float(np.mean(means)) / tandem_s(stages_ns, rate_hz) - 1)
            found.append(claim.at_most(f"{name}, load {load}: off by, %", abs(off), 2))
    return found


def main() -> None:
    options = claim.arguments(__doc__)
    worst_ms, count = worst_golden_ms()
    golden = claim.at_most(f"farthest of {count} golden step times, ms", worst_ms, 0.01)
    seeds = range(options.seed, options.seed + (4 if options.quick else 12))
    parts = [golden, *queue_parts(seeds, 12_000 if options.quick else 30_000)]
    claim.finish("distserve_reference", claim.together("DistServe's figures and queues", parts), options)


if __name__ == "__main__":
    main()
