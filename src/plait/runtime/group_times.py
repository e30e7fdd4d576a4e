"""Times of groups of instances on this machine: what `plait profile --groups` does.

For each size an engine of so many elastic instances computes prompts, each alone, all instances together;
long ones are cut, so that parts behind cached tokens are timed as well. Decode steps are those of one
instance.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from plait.cost.cost import Load
from plait.cost.fitted import Fitted, Timing
from plait.cost.scaling_base import Chunk, Degree, ScalingBase
from plait.cost.step_profile import median_of
from plait.runtime.doctor import cpu_name
from plait.runtime.engine import Engine
from plait.runtime.setup import ServeConfig, open_engine
from plait.runtime.step_times import continued
from plait.search.batching import Width
from plait.serving.batcher import BatcherConfig
from plait.serving.elasticity import ElasticConfig
from plait.serving.manager import ManagerConfig
from plait.sim.measured import timings
from plait.spec.cluster import Instance, Placement, Role
from plait.spec.command import Command
from plait.spec.errors import UserError
from plait.spec.event import Event
from plait.workload.journal import Entry

NEVER_NS = 1e15
"""Presumed of every group but the largest, so that it is taken."""
TOKEN_NS = 1e6
"""Presumed of a token, so that prompts are cut where they are to be."""


@dataclass(frozen=True, slots=True)
class GroupGrid:
    """What is measured."""

    groups: tuple[int, ...] = (1, 2)
    """Sizes of groups, in instances."""
    tp: int = 1
    """Processes of each instance."""
    prompts: tuple[int, ...] = (64, 256, 512, 2048)
    """Lengths, in tokens."""
    chunk_tokens: int = 512
    """Longer prompts are cut into parts of so many tokens."""
    batches: tuple[int, ...] = (1, 8)
    """Rows of decode steps."""
    contexts: tuple[int, ...] = (32, 512)
    """Tokens of context of each row when it begins to decode."""
    steps: int = 12
    """Decode steps of a cell."""
    repeats: int = 3
    """Prompts of a length."""
    seed: int = 0
    """Of the random prompts."""

    def __post_init__(self) -> None:
        counts = (*self.groups, *self.prompts, *self.batches, *self.contexts, self.chunk_tokens)
        if 1 not in self.groups or min(*counts, self.tp, self.steps, self.repeats) < 1:
            raise UserError("groups must begin with 1, and all figures be above 0", "groups")


async def scaling_base(config: ServeConfig, grid: GroupGrid, said: Callable[[str], None]) -> ScalingBase:
    """Measure and fit.

    Args:
        config: model, threads and types; its instances are replaced.
        said: is told of each size.

    Raises:
        UserError: the longest prompt does not fit the model, or its instances cannot form groups.
    """
    degrees: list[Degree] = []
    decodes: list[Timing] = []
    for size in sorted(grid.groups):
        engine = open_engine(_only(config, grid, size))
        entries: list[Entry] = []
        engine.watch(_keeper(entries))
        await engine.start()
        try:
            found = await _prompts(engine, grid, size, entries)
            if size == 1:
                decodes = await _decodes(engine, grid, entries)
        finally:
            await engine.close()
        chunks = tuple(_chunk(timing) for timing in found)
        degrees.append(Degree(size, grid.tp, Fitted.fit([*found, *decodes]), chunks))
        said(f"{size} instances of tp {grid.tp}: the fit is off by at most {degrees[-1].worst:.0%}")
    return ScalingBase(config.model, cpu_name(), config.threads, config.dtype, tuple(degrees))


def _keeper(entries: list[Entry]) -> Callable[[int, Event, Sequence[Command]], None]:
    def keep(now_ns: int, event: Event, commands: Sequence[Command]) -> None:
        entries.append(Entry(now_ns, event, tuple(commands)))

    return keep


def _only(config: ServeConfig, grid: GroupGrid, size: int) -> ServeConfig:
    """An engine that computes every prompt on all its instances, in parts of `chunk_tokens`."""
    longest = max(*grid.prompts, *grid.contexts) + grid.steps + 4
    widths = tuple(Width(n, 0.0 if n == size else NEVER_NS, TOKEN_NS, 0.0) for n in range(1, size + 1))
    elastic = ElasticConfig(widths, decode_ns=1e18, chunk_ns=TOKEN_NS * grid.chunk_tokens)
    manager = ManagerConfig(
        model=config.model,
        batcher=BatcherConfig(prefix_cache=False),
        elastic=elastic,
        placement=Placement(tuple(Instance(i, Role.ELASTIC, tp=grid.tp) for i in range(size))),
    )
    slots = config.kv_tokens or (longest + manager.page) * max(grid.batches)
    return replace(config, kv_tokens=slots, manager=manager, fleet=replace(config.fleet, instances=size))


async def _prompts(engine: Engine, grid: GroupGrid, size: int, entries: list[Entry]) -> list[Timing]:
    """The median step of every number of new and of cached tokens."""
    rng, found = np.random.default_rng(grid.seed), dict[tuple[int, int], list[Timing]]()
    for tokens in grid.prompts:
        for count in (1, grid.repeats):  # the first one is not counted: caches fill
            entries.clear()
            for _ in range(count):
                await continued(engine, rng, 1, tokens, 1)
        for timing in timings(entries, size):
            load = Load.of(timing.step)
            found.setdefault((load.chunk_tokens, load.cached_tokens), []).append(timing)
    return [_median(each) for each in found.values()]


async def _decodes(engine: Engine, grid: GroupGrid, entries: list[Entry]) -> list[Timing]:
    rng, found = np.random.default_rng(grid.seed), []
    for context in grid.contexts:
        for rows in grid.batches:
            for count in (2, grid.steps):
                entries.clear()
                await continued(engine, rng, rows, context, count + 1)
            whole = [each for each in timings(entries) if Load.of(each.step).decodes == rows]
            if not whole:
                raise UserError(f"no decode step of {rows} rows was seen: leave it out", "batches")
            found.append(_median(whole))
    return found


def _median(found: Sequence[Timing]) -> Timing:
    middle = median_of([timing.ns for timing in found])
    return next(timing for timing in found if timing.ns == middle)


def _chunk(timing: Timing) -> Chunk:
    load = Load.of(timing.step)
    return Chunk(load.chunk_tokens, load.cached_tokens, timing.ns)
