"""Step times of this machine, measured on real workers by a real engine: what `plait profile` does.

Every cell of a small grid is run once unmeasured (tapes are recorded, caches fill) and then measured; of
its steps the median counts. A time runs from when a step is issued, or the one before it is answered, to its
answer: it holds what a live step costs beside its computation.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from plait.cost.cost import Load
from plait.cost.fitted import Fitted, Timing
from plait.cost.step_profile import Point, StepProfile, median_of, saturation
from plait.runtime.ask import Ask
from plait.runtime.doctor import cpu_name
from plait.runtime.engine import Engine, shape_of
from plait.runtime.setup import ServeConfig, open_engine
from plait.serving.batcher import BatcherConfig
from plait.serving.manager import ManagerConfig
from plait.sim.measured import timings
from plait.spec.command import Command
from plait.spec.errors import UserError
from plait.spec.event import Event
from plait.spec.sampling import SamplingParams
from plait.workload.journal import Entry


@dataclass(frozen=True, slots=True)
class Grid:
    """What is measured."""

    prompts: tuple[int, ...] = (8, 32, 128, 256, 512, 1024)
    """Lengths of prompts, each alone in its step, in tokens."""
    batches: tuple[int, ...] = (1, 4, 16, 32)
    """Rows of decode steps."""
    contexts: tuple[int, ...] = (32, 512)
    """Tokens of context of each row when it begins to decode."""
    steps: int = 12
    """Decode steps of a cell."""
    repeats: int = 3
    """Prefills of a length."""
    seed: int = 0
    """Of the random prompts."""

    def __post_init__(self) -> None:
        smallest = min(*self.prompts, *self.batches, *self.contexts, self.steps, self.repeats)
        if len(self.prompts) < 2 or len(self.batches) * len(self.contexts) < 2 or smallest < 1:
            raise UserError(
                "a grid needs two prompt lengths, two decode cells, and all of them above 0", "grid"
            )


DECODE = Grid(prompts=(8, 16), batches=(1,), contexts=(64, 256), steps=48, repeats=1)
"""What is measured where only decode steps of one row are asked for."""


async def profile(config: ServeConfig, grid: Grid, said: Callable[[str], None]) -> StepProfile:
    """Measure and fit.

    Args:
        config: model, threads and types; its batcher is replaced by one that cuts no prompt.
        grid: what is measured.
        said: is told of each cell.

    Raises:
        UserError: the grid's longest prompt does not fit the model, or the model cannot be served.
    """
    engine = open_engine(_undivided(config, grid))
    entries: list[Entry] = []

    def keep(now_ns: int, event: Event, commands: Sequence[Command]) -> None:
        entries.append(Entry(now_ns, event, tuple(commands)))

    engine.watch(keep)
    await engine.start()
    try:
        found = await _cells(engine, grid, entries, said)
    finally:
        await engine.close()
    points = tuple(point for point, _ in found)
    prefills = {point.tokens: point.ns for point in points if point.phase == "prefill"}
    fitted = Fitted.fit([timing for _, timing in found])
    return StepProfile(
        config.model, cpu_name(), config.threads, config.dtype, saturation(prefills), fitted, points
    )


def decode_ns(config: ServeConfig, grid: Grid) -> float:
    """Nanoseconds of a decode step: the median of the grid's decode cells."""
    found = asyncio.run(profile(config, grid, lambda line: None))
    return float(np.median([point.ns for point in found.points if point.phase == "decode"]))


def _undivided(config: ServeConfig, grid: Grid) -> ServeConfig:
    longest, rows = max(*grid.prompts, *grid.contexts) + grid.steps + 2, max(grid.batches)
    batcher = BatcherConfig(step_tokens=max(grid.prompts), prefix_cache=False)
    slots = config.kv_tokens or (longest + config.manager.page) * rows
    return replace(config, kv_tokens=slots, manager=ManagerConfig(model=config.model, batcher=batcher))


async def _cells(
    engine: Engine, grid: Grid, entries: list[Entry], said: Callable[[str], None]
) -> list[tuple[Point, Timing]]:
    rng = np.random.default_rng(grid.seed)
    found = []
    for tokens in grid.prompts:
        for count in (1, grid.repeats):
            entries.clear()
            for _ in range(count):
                await continued(engine, rng, 1, tokens, 1)
        found.append(_median("prefill", 1, tokens, entries))
        said(f"prefill of {tokens} tokens: {found[-1][0].ns / 1e6:.2f} ms")
    for context in grid.contexts:
        for rows in grid.batches:
            for count in (2, grid.steps):
                entries.clear()
                await continued(engine, rng, rows, context, count + 1)
            found.append(_median("decode", rows, context, entries))
            said(f"decode of {rows} rows with {context} tokens each: {found[-1][0].ns / 1e6:.2f} ms")
    return found


async def continued(engine: Engine, rng: np.random.Generator, rows: int, tokens: int, output: int) -> None:
    """Draw `output` tokens for each of `rows` random prompts, all at once."""
    prompts = rng.integers(shape_of(engine.config.folder).vocab, size=(rows, tokens)).tolist()
    wish = SamplingParams(max_tokens=output, temperature=0.0, ignore_eos=True)

    async def one(prompt: list[int]) -> None:
        async for _ in engine.submit(Ask(tuple(prompt), wish)):
            pass

    await asyncio.gather(*(one(prompt) for prompt in prompts))


def _median(phase: str, rows: int, tokens: int, entries: Sequence[Entry]) -> tuple[Point, Timing]:
    """The median step of a cell, among those with all of its rows and nothing else."""
    chosen = []
    for timing in timings(entries):
        load = Load.of(timing.step)
        whole = (
            load.chunk_tokens == tokens and load.decodes == 0 if phase == "prefill" else load.decodes == rows
        )
        if whole:
            chosen.append(timing)
    if not chosen:
        raise UserError(
            f"no {phase} step of {rows} rows and {tokens} tokens was seen: leave this cell out of the grid",
            "grid",
        )
    middle = median_of([timing.ns for timing in chosen])
    timing = next(each for each in chosen if each.ns == middle)
    load = Load.of(timing.step)
    per_row = tokens if phase == "prefill" else load.context_tokens // rows
    return Point(phase, rows, per_row, timing.ns), timing
