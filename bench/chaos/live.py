"""Real worker processes under faults: every answer is held against the tokens of one process."""

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import product
from pathlib import Path

from tests.tiny import VOCAB
from tests.zygote import ForkLauncher, Zygote

from chaos.life import Life, Moment, Stage
from chaos.relay import Relays
from chaos.verdict import Verdict
from plait.runtime.ask import Ask
from plait.runtime.engine import Engine
from plait.runtime.fleet import FleetConfig
from plait.runtime.setup import ServeConfig, open_engine
from plait.runtime.stream import Stream
from plait.search.batching import Width
from plait.serving.admission import AdmissionConfig
from plait.serving.batcher import BatcherConfig
from plait.serving.elasticity import ElasticConfig
from plait.serving.manager import ManagerConfig
from plait.spec.cluster import Instance, Placement, Role
from plait.spec.command import Command
from plait.spec.errors import EngineFailure, Overloaded, PlaitError
from plait.spec.event import Event
from plait.spec.request import EndReason
from plait.spec.sampling import SamplingParams

M, P, D, E = Role.MIXED, Role.PREFILL, Role.DECODE, Role.ELASTIC
F, G = Role.ELASTIC_PREFILL, Role.ELASTIC_DECODE
PATIENCE_S = 30.0
PAUSE_S = 0.3
"""Mean time between two faults."""
CALLERS = 36
"""Three times as many as queue and rows of two instances bear."""
WIDTHS = tuple(Width(n, 1e4 * n, 1e6 / n, 1e4 / n) for n in range(1, 5))
"""Groups are worth their while for all but the shortest prompts."""
SIZES = {
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
}
"""Of a tiny model whose layers two processes can share."""
FLEET = FleetConfig(pause_ns=1_000_000, silence_ns=2_000_000_000, restarts=1000)


class Harm(StrEnum):
    """What is done to a worker, its connection, a caller or the driver's clock."""

    KILL = "kill -9"
    FREEZE = "stopped for a while"
    STALL = "stopped until it is given up"
    RESET = "connection reset"
    SLOW = "slow connection"
    LEAVE = "caller leaves"
    JUMP = "clock jumps"


class JumpingClock:
    """That of a driver, which leaps."""

    def __init__(self) -> None:
        self.offset_ns = 0

    def __call__(self) -> int:
        return time.monotonic_ns() + self.offset_ns


@dataclass(frozen=True)
class Case:
    """A deployment."""

    name: str
    roles: tuple[Role, ...]
    tp: int = 1

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Those that its requests pass."""
        found = [Stage.QUEUED, Stage.PREFILL, Stage.CHUNK, Stage.DECODE]
        if any(role.elastic for role in self.roles):
            found += [Stage.GROUP, Stage.RETENTION]
        if not all(role.prefills for role in self.roles):
            found += [Stage.MOVING]
        return tuple(found)


CASES = (
    Case("mixed", (M, M)),
    Case("prefill and decode", (P, D, D)),
    Case("tp", (M, M), tp=2),
    Case("elastic", (E, E, E)),
    Case("elastic pools", (F, F, G)),
)


def asks_of(rng: random.Random, count: int) -> list[Ask]:
    """Greedy, with prompts of 8 to 120 tokens."""
    prompts = [tuple(rng.randrange(VOCAB) for _ in range(rng.randint(8, 120))) for _ in range(count)]
    wishes = (SamplingParams(temperature=0, max_tokens=rng.randint(8, 40), ignore_eos=True) for _ in prompts)
    return [Ask(prompt, wish) for prompt, wish in zip(prompts, wishes, strict=True)]


@asynccontextmanager
async def running(folder: Path, case: Case, zygote: Zygote, **changes: object) -> AsyncIterator[Engine]:
    """An engine whose workers are reached through relays, quiet in the end."""
    placement = Placement(tuple(Instance(i, role, case.tp) for i, role in enumerate(case.roles)))
    manager = ManagerConfig(
        page=16,
        admission=AdmissionConfig(max_queue=8, max_rows=2),
        batcher=BatcherConfig(step_tokens=48),
        elastic=ElasticConfig(widths=WIDTHS),
        placement=placement,
    )
    fleet = replace(FLEET, instances=len(case.roles))
    config = ServeConfig(str(folder), exact=True, kv_tokens=768, manager=manager, fleet=fleet)
    engine = open_engine(replace(config, **changes))  # type: ignore[arg-type]
    engine.fleet._launcher = Relays(ForkLauncher(zygote))  # type: ignore[attr-defined]
    engine.driver._clock_ns = JumpingClock()
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


class Besetting:
    """An observer that harms workers at the stages of requests' lives, all kinds in turn."""

    def __init__(
        self, engine: Engine, case: Case, rng: random.Random, most: int, enough: Callable[[], None]
    ) -> None:
        """`enough` is called after so many (`most`)."""
        self.done: Counter[str] = Counter()
        self._most, self._enough = most, enough
        self._engine, self._rng = engine, rng
        self._life = Life(not all(role.prefills for role in case.roles))
        self._wishes = list(product(case.stages, Harm))
        rng.shuffle(self._wishes)
        self._next_s = 0.0
        self._frozen: set[int] = set()
        self._loop = asyncio.get_running_loop()

    def see(self, now_ns: int, event: Event, commands: Sequence[Command]) -> None:
        """See `Observer`."""
        moments = self._life.moments(event, commands)
        if self._loop.time() < self._next_s or self.done.total() == self._most:
            return
        for moment in self._rng.sample(moments, len(moments)):
            for at, (stage, harm) in enumerate(self._wishes):
                if stage is moment.stage and self._harm(harm, moment):
                    self._wishes.append(self._wishes.pop(at))
                    self.done[f"{stage}: {harm}"] += 1
                    self._next_s = self._loop.time() + self._rng.expovariate(1 / PAUSE_S)
                    if self.done.total() == self._most:
                        self._enough()
                    return

    def _harm(self, harm: Harm, moment: Moment) -> bool:
        """Whether it could be done."""
        fleet = self._engine.fleet
        member = fleet.members[self._rng.choice(moment.instances or tuple(fleet.members))]
        part = self._rng.choice(member.parts)
        if harm is Harm.LEAVE:
            self._loop.call_soon(self._engine.driver.abort, moment.request)
            return True
        if harm is Harm.JUMP:
            self._engine.driver._clock_ns.offset_ns += self._rng.randint(-1000, 1000) * 1_000_000
            return True
        if not member.up or part.pid is None or part.pid in self._frozen:
            return False
        if harm is Harm.KILL:
            os.kill(part.pid, signal.SIGKILL)
        elif harm in (Harm.FREEZE, Harm.STALL):
            os.kill(part.pid, signal.SIGSTOP)
            self._frozen.add(part.pid)
            if harm is Harm.FREEZE:
                self._loop.call_later(self._rng.uniform(0.05, 0.5), self._thaw, part.pid)
        elif harm is Harm.RESET:
            fleet._launcher.reset(member.instance)
        else:
            fleet._launcher.slow(member.instance, 0.02)
            self._loop.call_later(self._rng.uniform(0.1, 0.5), fleet._launcher.slow, member.instance, 0.0)
        return True

    def _thaw(self, pid: int) -> None:
        self._frozen.discard(pid)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@dataclass
class Callers:
    """Ask again and again, and hold what comes against what must."""

    engine: Engine
    asks: list[Ask]
    expected: list[list[int]]
    rng: random.Random
    found: Verdict = field(default_factory=Verdict)
    enough: bool = False

    def stop(self) -> None:
        """What was asked is still answered."""
        self.enough = True

    async def go_on(self) -> None:
        """One caller, until there were enough faults."""
        while not self.enough:
            at = self.rng.randrange(len(self.asks))
            began_s, stream = time.monotonic(), self.engine.submit(self.asks[at])
            try:
                async with asyncio.timeout(PATIENCE_S):
                    how, tokens = await self._read(stream)
            except TimeoutError:
                how, tokens = "no end", []
                self.found.wrong.append(f"request {stream.id}: no end in {PATIENCE_S:g} s")
                stream.abort()
                self.enough = True
            self.found.longest_s = max(self.found.longest_s, time.monotonic() - began_s)
            self.found.ends[how] += 1
            whole = how in (EndReason.LENGTH, EndReason.STOP)
            if tokens != (self.expected[at] if whole else self.expected[at][: len(tokens)]):
                self.found.wrong.append(f"request {stream.id} ({how}): {tokens}, not {self.expected[at]}")
            if how == "Overloaded":
                await asyncio.sleep(0.02)

    async def _read(self, stream: Stream) -> tuple[str, list[int]]:
        tokens: list[int] = []
        how = ""
        try:
            async for piece in stream:
                tokens += piece.tokens
                how = piece.finish.value if piece.finish else how
        except (EngineFailure, Overloaded) as error:
            how = type(error).__name__
        except PlaitError as error:
            how = type(error).__name__
            self.found.wrong.append(f"request {stream.id}: {how}: {error}")
        return how, tokens


async def alone(folder: Path, asks: Sequence[Ask], zygote: Zygote) -> list[list[int]]:
    """What one process draws."""
    async with running(folder, Case("alone", (M,)), zygote) as engine:
        return [[token async for piece in engine.submit(ask) for token in piece.tokens] for ask in asks]


async def one_run(
    folder: Path, case: Case, zygote: Zygote, work: tuple[list[Ask], list[list[int]]], faults: int, seed: int
) -> Verdict:
    """Three times as many callers as rows fit, until there were so many faults."""
    rng = random.Random(seed)
    async with running(folder, case, zygote) as engine:
        callers = Callers(engine, *work, rng)
        harms = Besetting(engine, case, rng, faults, callers.stop)
        engine.watch(harms.see)
        tasks = [asyncio.ensure_future(callers.go_on()) for _ in range(CALLERS)]
        await asyncio.gather(*tasks)
        found = callers.found
        found.faults += harms.done
        await quiet(engine, found)
        counts = engine.core.counts
        found.recomputed += counts.recomputations + counts.move_retries
    found.wrong = [f"{case.name}, seed {seed}: {each}" for each in found.wrong]
    return found


async def quiet(engine: Engine, found: Verdict) -> None:
    """Steps of requests that ended may be in flight; then nothing is held."""
    rested = asyncio.Event()
    engine.watch(lambda *_: rested.set() if engine.core.quiet else None)
    try:
        async with asyncio.timeout(PATIENCE_S):
            if not engine.core.quiet:
                await rested.wait()
    except TimeoutError:
        found.wrong.append(f"something is in flight {PATIENCE_S:g} s after the last end")
    engine.core.ledger.check()
    found.leaked += engine.stats().kv_used_slots


async def live(
    folder: Path, work: tuple[list[Ask], list[list[int]]], zygote: Zygote, faults: int, seed: int
) -> Verdict:
    """Runs over all cases with so many faults altogether. `work`: asks, and the tokens that they must get."""
    found = Verdict()
    for number, case in enumerate(CASES):
        found.add(await one_run(folder, case, zygote, work, -(-faults // len(CASES)), seed + number))
    return found
