"""How far a decode step is from what the machine allows, and how long workers wait between steps.

The limit of a step is the sum over its products and its attention of the longer of memory traffic (weights
and KV) and arithmetic, at the read bandwidth and the best bf16 matrix product of the same run: both are
measured before and after every turn. A step's time is what the worker took for it, on all cores at once.
"""

import argparse
import asyncio
import os
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from statistics import fmean, median
from typing import NoReturn

import claim
import numpy as np
import torch
import torch.nn.functional as F

from plait.kernels.choice import choose
from plait.runtime.ask import Ask
from plait.runtime.engine import Engine, shape_of
from plait.runtime.fleet import FleetConfig, WorkerFleet
from plait.runtime.setup import ServeConfig, open_engine
from plait.server.config import ServerConfig
from plait.server.lifespan import make_server
from plait.spec.sampling import SamplingParams
from plait.spec.shape import ModelShape
from plait.worker.wire import Answer

CORES = len(os.sched_getaffinity(0))
MODEL, DTYPE, WIDTH = "smollm2-135m", "bfloat16", 2
LAYOUTS = {(1, CORES): (1, 64), (CORES, 1): (16,)}
"""(Instances, threads of each) -> rows that decode on them: how we lay out the cores for so many."""
STREAMS = 16
PROMPT, OUTPUT, WARM_OUTPUT = 128, 64, 4
STEP_BAR, GAP_BAR_PERCENT = 1.5, 8.0
READ_BYTES = 512 << 20
TRIES = 7
PRODUCTS = ((2048, 2048, 2048), (512, 576, 3072), (512, 1536, 576))
"""(tokens, inputs, outputs) of the matrix products that are tried; the fastest counts."""
SETTLE_S = 0.3
"""Rest after torch, whose threads watch for more work for a while."""


@dataclass(frozen=True)
class Machine:
    """What was measured beside one turn."""

    read: float
    """Bytes a second."""
    flops: float
    """FLOP a second of the best bf16 product."""


@dataclass
class Timeline:
    """Answers of each instance, in order."""

    by_instance: dict[int, list[Answer]] = field(default_factory=lambda: defaultdict(list))

    def take(self, instance: int, answer: Answer) -> None:
        self.by_instance[instance].append(answer)

    def steady(self, least: int) -> Iterator[list[Answer]]:
        """Stretches of steps in which at least `least` rows decoded and none read its prompt."""
        for answers in self.by_instance.values():
            stretch: list[Answer] = []
            for answer in answers:
                if len(answer.draws) >= least and all(draw.tokens for draw in answer.draws):
                    stretch.append(answer)
                    continue
                yield stretch
                stretch = []
            yield stretch

    def busy_ns(self, least: int) -> list[int]:
        """Times of the steady steps."""
        return [answer.busy_ns for stretch in self.steady(least) for answer in stretch]

    def gaps_ns(self, least: int) -> list[int]:
        """From the end of each steady step to the start of the next."""
        return [
            after.begin_ns - before.begin_ns - before.busy_ns
            for stretch in self.steady(least)
            for before, after in pairwise(stretch)
        ]


class Gauge:
    """Measures the machine."""

    def __init__(self) -> None:
        torch.set_num_threads(CORES)
        self._memory = torch.ones(READ_BYTES // 4)
        self._products = [
            (torch.randn(t, i).bfloat16(), torch.randn(o, i).bfloat16()) for t, i, o in PRODUCTS
        ]

    def measure(self) -> Machine:
        """Bandwidth of reading plain memory, and the rate of the best product; medians of a few tries."""
        memory, choice = self._memory, choose()
        assert choice.native is not None, f"nothing to measure: {choice.why}"
        native = partial(choice.native.read, choice.isa, memory.data_ptr(), memory.nbytes, CORES)
        read_s = min(_median_s(native), _median_s(memory.sum))
        flops = max(2 * len(x) * w.numel() / _median_s(partial(F.linear, x, w)) for x, w in self._products)
        time.sleep(SETTLE_S)
        return Machine(READ_BYTES / read_s, flops)


def _median_s(call: Callable[[], object]) -> float:
    found = []
    for _ in range(TRIES):
        begin = time.perf_counter()
        call()
        found.append(time.perf_counter() - begin)
    return median(found)


def limit_s(shape: ModelShape, rows: int, context: int, machine: Machine) -> float:
    """The least time of a step in which `rows` rows of `context` tokens each take one more."""

    def longer(moved_bytes: float, flops: float) -> float:
        return max(moved_bytes / machine.read, flops / machine.flops)

    total = longer(shape.vocab * shape.hidden * WIDTH, 2 * shape.vocab * shape.hidden * rows)
    for layer in shape.layers:
        query, kv = layer.heads * layer.head_dim, layer.kv_heads * layer.head_dim
        products = (layer.hidden * (query + 2 * kv), query * layer.hidden)
        products += (layer.hidden * layer.ffn * (2 if layer.gated else 1), layer.ffn * layer.hidden)
        total += sum(longer(weights * WIDTH, 2 * weights * rows) for weights in products)
        total += longer(rows * context * 2 * kv * WIDTH, 4 * query * rows * context)
    return total


@asynccontextmanager
async def opened(layout: tuple[int, int]) -> AsyncIterator[tuple[Engine, Timeline]]:
    """Our engine, and the timeline of its workers."""
    instances, threads = layout
    engine = open_engine(ServeConfig(MODEL, threads=threads, dtype=DTYPE, fleet=FleetConfig(instances)))
    assert isinstance(engine.fleet, WorkerFleet)
    timeline = Timeline()
    engine.fleet.watchers.append(timeline.take)
    await engine.start()
    try:
        yield engine, timeline
    finally:
        await engine.close()


async def decode(engine: Engine, rows: int, output: int, rng: np.random.Generator) -> None:
    """Continue `rows` random prompts at once by `output` tokens each."""

    async def one(prompt: list[int]) -> int:
        wish = SamplingParams(max_tokens=output, temperature=0, ignore_eos=True)
        return sum([len(piece.tokens) async for piece in engine.submit(Ask(tuple(prompt), wish))])

    prompts = rng.integers(shape_of(engine.config.folder).vocab, size=(rows, PROMPT)).tolist()
    drawn = await asyncio.gather(*(one(prompt) for prompt in prompts))
    assert drawn == [output] * rows, "a request ended early"


async def step_part(engine: Engine, timeline: Timeline, rows: int, turns: int, seed: int) -> claim.Claim:
    """The step of `rows` rows over its limit."""
    rng, gauge, shape = np.random.default_rng((seed, rows)), Gauge(), shape_of(engine.config.folder)
    steps_s, limits_s = [], []
    await decode(engine, rows, WARM_OUTPUT, rng)
    share = rows // len(timeline.by_instance)
    for _ in range(turns):
        timeline.by_instance.clear()
        before = gauge.measure()
        await decode(engine, rows, OUTPUT, rng)
        around = (before, gauge.measure())
        limits_s.append(fmean(limit_s(shape, rows, PROMPT + OUTPUT // 2, machine) for machine in around))
        steps_s.append(median(timeline.busy_ns(share)) / 1e9)
    ratios = [step / limit for step, limit in zip(steps_s, limits_s, strict=True)]
    value = median(ratios)
    said = f"{rows} rows: {median(steps_s) * 1e3:.1f} ms over a limit of {median(limits_s) * 1e3:.1f} ms"
    return claim.Claim(said, value, STEP_BAR, value <= STEP_BAR, (min(ratios), max(ratios)))


async def gap_part(engine: Engine, timeline: Timeline, rounds: int, seed: int) -> claim.Claim:
    """Share of a step that workers wait for the next, with `STREAMS` streams over HTTP."""
    listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    server = make_server(engine, ServerConfig(port=0), listening.set_result)
    serving = asyncio.create_task(server.serve())
    url = await listening
    share = STREAMS // len(timeline.by_instance)
    timeline.by_instance.clear()
    told = {"url": url, "model": MODEL, "profile": "closed", "num-prompts": STREAMS * rounds, "seed": seed}
    told |= {"concurrency": STREAMS, "input-len": PROMPT, "output-len": OUTPUT, "vocab": 40_000}
    options = [f"--{name}={value}" for name, value in told.items()]
    plait = [sys.executable, "-c", "from plait.cli.main import main; main()", "bench", "serve"]
    load = await asyncio.create_subprocess_exec(*plait, *options, "--ignore-eos", stdout=sys.stderr)
    assert await load.wait() == 0, "the load generator failed"
    server.should_exit = True
    await serving
    # Rows come and go one by one here: a step counts when at least half of an instance's share decodes.
    gaps, busy = timeline.gaps_ns(share // 2), timeline.busy_ns(share // 2)
    what = f"{STREAMS} streams over HTTP, {len(gaps)} gaps: the median, % of a step"
    return claim.at_most(what, 100 * median(gaps) / median(busy), GAP_BAR_PERCENT)


async def measure(options: argparse.Namespace) -> NoReturn:
    turns, rounds = (1, 2) if options.quick else (5, 6)
    steps: list[claim.Claim] = []
    for layout, batches in LAYOUTS.items():
        async with opened(layout) as (engine, timeline):
            steps += [await step_part(engine, timeline, rows, turns, options.seed) for rows in batches]
            if STREAMS in batches:
                gap = await gap_part(engine, timeline, rounds, options.seed)
    worst = max(part.value for part in steps)
    parts = (*steps, gap)
    whole = f"decode steps of {MODEL}, {DTYPE}, over their limit: the worst"
    held = all(part.holds for part in parts)
    claim.finish("step_limit", claim.Claim(whole, worst, STEP_BAR, held, parts=parts), options)


if __name__ == "__main__":
    asyncio.run(measure(claim.arguments(__doc__)))
