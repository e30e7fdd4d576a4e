"""What a slow move costs those who decode meanwhile.

One instance prefills, one decodes, both paced: a step is answered after `STEP_NS`, so that two instances on a
few cores stand for two devices. While rows decode, the keys and values of a long prompt come over a link that
is throttled to `RATE` bytes/s. Times between tokens of the same rows of the same run are compared, with the
move under way and without. What the steps really took on the decoding worker is reported beside.
"""

import argparse
import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import claim
import numpy as np

from plait.runtime.ask import Ask
from plait.runtime.engine import Engine, Stream, shape_of
from plait.runtime.fleet import FleetConfig, WorkerFleet
from plait.runtime.paced import PacedFleet
from plait.runtime.setup import ServeConfig, open_engine
from plait.serving.manager import ManagerConfig
from plait.spec.cluster import Placement
from plait.spec.command import Command, Token
from plait.spec.event import Event, Moved
from plait.spec.move import Move
from plait.spec.sampling import SamplingParams
from plait.spec.step import Step
from plait.worker.config import LinkConfig
from plait.worker.wire import Answer, Pulled

MODEL, DTYPE, WIDTH = "smollm2-135m", "bfloat16", 2
RATE = 1e6
"""Bytes/s of the link."""
STEP_NS = 40_000_000
ROWS, PROMPT, OUTPUT = 8, 16, 7000
"""Rows that decode, tokens of their prompts, and more than they draw in all rounds."""
BAR = 1.1
DECODING = 1
"""The instance that decodes."""


class Even:
    """Every step takes the same time."""

    def step_ns(self, step: Step) -> int:
        """See `Cost`."""
        return STEP_NS


@dataclass
class Gaps:
    """Times between tokens, ns: of rows as they come, and what their steps took on the worker."""

    tokens_ns: list[int] = field(default_factory=list)
    busy_ns: list[int] = field(default_factory=list)


class Watch:
    """Sorts times between tokens by whether a move is under way. Nothing counts unless `into` says where."""

    def __init__(self, engine: Engine) -> None:
        self.without, self.during = Gaps(), Gaps()
        self.into: Gaps | None = None
        self.rows: set[int] = set()
        """Requests that count."""
        self.moved: set[int] = set()
        """Requests that have arrived where they decode."""
        self.rates: list[float] = []
        """Bytes/s of each long move."""
        self._moves: dict[int, int] = {}
        self._last_ns: dict[int, int] = {}
        self._changed = asyncio.Event()
        engine.driver.observers.append(self._look)
        fleet = engine.fleet
        assert isinstance(fleet, PacedFleet)
        assert isinstance(fleet.inner, WorkerFleet)
        fleet.inner.watchers.append(self._hear)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait for a call of the core after which this holds."""
        while not holds():
            self._changed.clear()
            await self._changed.wait()

    def count(self, into: Gaps | None) -> None:
        """From now on times between two tokens go there."""
        self.into = into
        self._last_ns.clear()

    def _look(self, now_ns: int, event: Event, commands: Sequence[Command]) -> None:
        if isinstance(event, Moved):
            request = self._moves.pop(event.move)
            self.moved.add(request)
            if request not in self.rows:
                self.count(None)
        for command in commands:
            if isinstance(command, Token):
                self._tokens(now_ns, command)
            elif isinstance(command, Move):
                self._moves[command.id] = command.request
                if command.request not in self.rows:
                    self.count(self.during)
        self._changed.set()

    def _tokens(self, now_ns: int, token: Token) -> None:
        for request in token.requests:
            if self.into is None or request not in self.rows:
                continue
            if request in self._last_ns:
                self.into.tokens_ns.append(now_ns - self._last_ns[request])
            self._last_ns[request] = now_ns

    def _hear(self, instance: int, message: Answer | Pulled) -> None:
        if isinstance(message, Pulled):
            if self._moves.get(message.move) not in self.rows:
                self.rates.append(message.wire_bytes / message.busy_ns * 1e9)
        elif instance == DECODING and self.into is not None:
            self.into.busy_ns.append(message.busy_ns)


def opened() -> Engine:
    """Two paced instances, joined by the slow link."""
    fleet = FleetConfig(instances=2, links=LinkConfig(bytes_per_s=RATE))
    manager = ManagerConfig(placement=Placement.disaggregated(1, 1))
    config = ServeConfig(MODEL, dtype=DTYPE, kv_tokens=1 << 16, manager=manager, pace=Even(), fleet=fleet)
    return open_engine(config)


async def drawn(stream: Stream) -> int:
    """Tokens of a request until its end."""
    return sum([len(piece.tokens) async for piece in stream])


async def measure(engine: Engine, rounds: int, long: int, seed: int) -> Watch:
    """Alternate stretches without a move and with one of `long` tokens."""
    rng, vocab = np.random.default_rng(seed), shape_of(engine.config.folder).vocab
    watch = Watch(engine)

    def ask(tokens: int, output: int) -> Stream:
        wish = SamplingParams(max_tokens=output, temperature=0, ignore_eos=True)
        return engine.submit(Ask(tuple(rng.integers(vocab, size=tokens).tolist()), wish))

    rows = [ask(PROMPT, OUTPUT) for _ in range(ROWS)]
    watch.rows = {stream.id for stream in rows}
    running = [asyncio.create_task(drawn(stream)) for stream in rows]
    await watch.until(lambda: watch.rows <= watch.moved)
    # As many as there will be during the move.
    steps = int(long * token_bytes(engine) / RATE * 1e9) // STEP_NS
    for _ in range(rounds):
        least = len(watch.without.tokens_ns) + ROWS * steps
        watch.count(watch.without)
        await watch.until(lambda least=least: len(watch.without.tokens_ns) >= least)
        watch.count(None)
        assert await drawn(ask(long, 2)) == 2
    for stream in rows:
        stream.abort()
    await asyncio.gather(*running)
    return watch


def token_bytes(engine: Engine) -> int:
    """Bytes of the keys and values of a token."""
    layers = shape_of(engine.config.folder).layers
    return sum(2 * layer.kv_heads * layer.head_dim for layer in layers) * WIDTH


async def run(options: argparse.Namespace) -> NoReturn:
    """Serve, measure, judge."""
    rounds, long = (2, 320) if options.quick else (6, 640)
    engine = opened()
    await engine.start()
    try:
        watch = await measure(engine, rounds, long, options.seed)
    finally:
        await engine.close()
    claim.finish("move_pace", judged(watch), options)


def judged(watch: Watch) -> claim.Claim:
    """The bar is on what callers see; the worker's own times are reported."""
    without, during = watch.without, watch.during
    least = min(len(without.tokens_ns), len(during.tokens_ns))
    p99_ms = [float(np.percentile(gaps.tokens_ns, 99)) / 1e6 for gaps in (without, during)]
    busy_ms = [np.percentile(gaps.busy_ns, (50, 99)) / 1e6 for gaps in (without, during)]
    said = f"paced TPOT p99 {p99_ms[1]:.1f} ms during a move, {p99_ms[0]:.1f} without: ratio"
    parts = [
        claim.at_most(said, p99_ms[1] / p99_ms[0], BAR),
        claim.at_least("times between tokens of each kind, at least", least, 1000),
        claim.at_most("MB/s of the fastest move", max(watch.rates) / 1e6, 1.05 * RATE / 1e6),
    ]
    for name, (half, most) in zip(("without", "during"), busy_ms, strict=True):
        parts.append(
            claim.reported(f"step on the decoding worker {name}, ms, p50 (.. p99)", half, (half, most))
        )
    return claim.together("a throttled move beside decoding rows (paced)", parts)


if __name__ == "__main__":
    asyncio.run(run(claim.arguments(__doc__)))
