"""What elastic sequence parallelism costs beside its arithmetic, on SmolLM2-135M in bf16.

Two processes, each with one thread on a core of its own and a model of its own, joined by shared memory.

Scale-down: a prompt is computed by both, in a ring, and then lies on one of them. Counted: bytes that are
sent beyond those of the same prompt of which each keeps half; timed: beside the same ring from which nobody
keeps anything.

Multi-master decoding: each request's keys lie half here and half there, each process computes half of the
requests. Timed beside the same processes decoding their halves with all keys at home and nothing exchanged:
equal weights and keys are read. A step's time is that of a run of steps over their number, on the slower
process; both ways in turn, the median of the ratios counts.

Reported beside: members that are joined by signed frames over loopback, and both on one core.
"""

import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import claim
import numpy as np

sys.path.append(str(Path(__file__).parents[1]))

from plait.kernels import transfer
from plait.model.config import ModelConfig
from plait.model.hub import resolve
from plait.spec.sampling import Opened, SamplingParams
from plait.spec.step import Extent, Keep, Row, Span, Step
from plait.worker.config import LinkConfig
from plait.worker.wire import Source

SECRET = b"0123456789abcdef0123456789abcdef"
CONTEXT, HALF, PROMPT = 1024, 512, 2048
ROOM, OUTPUTS = 768, 256
"""Slots of a request's half on an instance; tokens that are decoded beyond the context, at most."""
SLOTS = 1 << 15
STEPS = 16
"""Of a timed run."""
WARM = 4
RETENTION_BAR, DECODE_BAR = 1.02, 1.10
VOCAB = 40_000
GREEDY = SamplingParams(temperature=0, max_tokens=OUTPUTS, ignore_eos=True)


@dataclass(frozen=True)
class Work:
    """Steps that a member carries out one after another."""

    orders: Sequence[tuple[Step, tuple[Opened, ...]]]
    members: tuple[Source, ...] = ()
    keeps: bool = True
    """Take what passes in the ring."""


@dataclass(frozen=True)
class Done:
    """Of such work."""

    tokens: tuple[int, ...]
    """Drawn in the last step, -1 where this member drew none."""
    took_ns: int
    sent_bytes: int


def member(pipe: Connection, instance: int, core: int, links: LinkConfig) -> None:
    """The life of one process."""
    os.sched_setaffinity(0, {core})
    from plait.model.model import Model
    from plait.worker.exchange import Exchange
    from plait.worker.executor import Executor
    from plait.worker.lender import Lender
    from plait.worker.progress import Progress
    from plait.worker.store import Store
    from plait.worker.way import Ways

    folder = str(resolve("smollm2-135m"))
    model = Model(ModelConfig(folder, dtype="bfloat16", slots=SLOTS, page=16, threads=1))
    model.pool.populate()
    name, store = b"%d.1.0" % instance, Store(model.pool, Store.whole_shard(model.pool))
    executor, exchange = Executor(model, instance), Exchange(links, SECRET, name, 60.0)
    executor.exchange = exchange
    lender = Lender(Ways(links, name), store, Progress(), SECRET, name, "127.0.0.1", exchange.attach)
    lender.start()
    pipe.send(Source(name, lender.address, store.shard))
    copy = transfer.carry_slots
    while (work := pipe.recv()) is not None:
        transfer.carry_slots = copy if work.keeps else _take_nothing
        sent, begin_ns = exchange.sent_bytes, time.monotonic_ns()
        for step, opened in work.orders:
            draws = executor.run(step, opened, work.members if len(step.group) > 1 else ())
        took_ns = time.monotonic_ns() - begin_ns
        tokens = tuple(draw.tokens[0] if draw.tokens else -1 for draw in draws)
        pipe.send(Done(tokens, took_ns, exchange.sent_bytes - sent))
    lender.close()
    exchange.close()


def _take_nothing(*_: object) -> None:
    """Stands in for the copying of what is kept."""


class Pair:
    """Two members and the requests that lie on them."""

    def __init__(self, pipes: Sequence[Connection], rng: np.random.Generator) -> None:
        self._pipes, self._rng = pipes, rng
        self.sources: tuple[Source, ...] = tuple(pipe.recv() for pipe in pipes)
        self._step = 0
        self._request = 0

    def run(self, works: Sequence[Work | None]) -> list[Done]:
        """Work for each member, at the same time."""
        for pipe, work in zip(self._pipes, works, strict=True):
            if work is not None:
                pipe.send(work)
        return [pipe.recv() for pipe, work in zip(self._pipes, works, strict=True) if work is not None]

    def id(self) -> int:
        """Of the next step."""
        self._step += 1
        return self._step

    def prompt(self, tokens: int) -> tuple[int, tuple[int, ...]]:
        """A new request."""
        self._request += 1
        return self._request, tuple(self._rng.integers(VOCAB, size=tokens).tolist())

    def prefill(self, keep: Sequence[Keep], *, keeps: bool = True) -> tuple[int, int]:
        """Compute a prompt in a ring and forget it; (time on the slower member, bytes that were sent)."""
        request, tokens = self.prompt(PROMPT)
        spans = tuple(Span(i, 0, (Extent(0, PROMPT),)) for i in (0, 1))
        row = Row(request, 0, PROMPT, 2, True, True, spans, (PROMPT - 1) % 2, tuple(keep))
        step = Step(self.id(), (0, 1), (row,), opened=(request,))
        order = step, (Opened(request, tokens, PROMPT, GREEDY, ()),)
        done = self.run([Work([order], self.sources, keeps)] * 2)
        self.run([Work([(Step(self.id(), (i,), (), closed=(request,)), ())]) for i in (0, 1)])
        return max(each.took_ns for each in done), sum(each.sent_bytes for each in done)

    # ---- decoding --------------------------------------------------------------------------------

    def apart(self, rows: int, slot: int) -> list[list[int]]:
        """Begin requests, half of them on each member, from `slot` on; their numbers by member."""
        found: list[list[int]] = []
        for i in (0, 1):
            found.append([])
            for at in range(rows // 2):
                request, tokens = self.prompt(CONTEXT)
                spans = (Span(i, 0, (Extent(slot + at * 2 * ROOM, 2 * ROOM),)),)
                row = Row(request, 0, CONTEXT, 1, True, True, spans, i)
                step = Step(self.id(), (i,), (row,), opened=(request,))
                works: list[Work | None] = [None, None]
                works[i] = Work([(step, (Opened(request, tokens, CONTEXT, GREEDY, ()),))])
                self.run(works)
                found[i].append(request)
        return found

    def together(self, rows: int, slot: int) -> list[int]:
        """Begin requests whose keys lie half on each member, and which each computes half of."""
        keep = (Keep(0, 0, HALF), Keep(1, HALF, CONTEXT - HALF))
        found, opened = [], []
        for at in range(rows):
            request, tokens = self.prompt(CONTEXT)
            spans = tuple(Span(i, 0, (Extent(slot + at * ROOM, ROOM),)) for i in (0, 1))
            row = Row(request, 0, CONTEXT, 2, True, True, spans, 1, keep)
            step = Step(self.id(), (0, 1), (row,), opened=(request,))
            orders = [(step, (Opened(request, tokens, CONTEXT, GREEDY, ()),))]
            drawn = max(done.tokens[0] for done in self.run([Work(orders, self.sources)] * 2))
            decode = Row(request, CONTEXT, 1, 1, False, True, spans, at % 2, keep)
            opened.append(Opened(request, (*tokens, drawn), CONTEXT, GREEDY, ()))
            found.append(decode)
        numbers = [row.request for row in found]
        step = Step(self.id(), (0, 1), tuple(found), opened=tuple(numbers))
        self.run([Work([(step, tuple(opened))], self.sources)] * 2)
        return numbers

    def decode_apart(self, requests: Sequence[Sequence[int]], steps: int) -> float:
        """Nanoseconds a step."""
        works = [
            Work([(Step(self.id(), (i,), (), tuple(requests[i])), ()) for _ in range(steps)]) for i in (0, 1)
        ]
        return max(done.took_ns for done in self.run(works)) / steps

    def decode_together(self, requests: Sequence[int], steps: int) -> float:
        """Nanoseconds a step."""
        orders = [(Step(self.id(), (0, 1), (), tuple(requests)), ()) for _ in range(steps)]
        return max(done.took_ns for done in self.run([Work(orders, self.sources)] * 2)) / steps

    def close(self, requests: Sequence[int]) -> None:
        """Forget requests."""
        self.run([Work([(Step(self.id(), (i,), (), closed=tuple(requests)), ())]) for i in (0, 1)])


@contextmanager
def pair(cores: tuple[int, int], links: LinkConfig, seed: int) -> Iterator[Pair]:
    """Two members, until the end of the block."""
    context = multiprocessing.get_context("spawn")
    ends = [context.Pipe() for _ in cores]
    processes = [
        context.Process(target=member, args=(theirs, i, core, links), daemon=True)
        for i, ((_, theirs), core) in enumerate(zip(ends, cores, strict=True))
    ]
    for process in processes:
        process.start()
    pipes = [ours for ours, _ in ends]
    try:
        yield Pair(pipes, np.random.default_rng(seed))
    finally:
        for pipe, process in zip(pipes, processes, strict=True):
            pipe.send(None)
            process.join(timeout=30)


def retention(both: Pair, turns: int) -> list[claim.Claim]:
    """Scale-down beside the same ring without it."""
    down, even = [Keep(0, 0, PROMPT)], [Keep(0, 0, PROMPT // 2), Keep(1, PROMPT // 2, PROMPT // 2)]
    both.prefill(down)
    _, halves = both.prefill(even)
    ratios, extra = [], 0
    for turn in range(turns):
        took_ns = {}
        for keeps in (True, False) if turn % 2 else (False, True):
            took_ns[keeps], sent = both.prefill(down if keeps else even, keeps=keeps)
            extra = max(extra, abs(sent - halves))
        ratios.append(took_ns[True] / took_ns[False])
    value = median(ratios)
    said = f"scale-down from 2 to 1, prompt of {PROMPT:,} tokens"
    return [
        claim.at_most(f"{said}: bytes sent beyond those of the ring", extra, 0),
        claim.Claim(
            f"{said}: time over the ring's", value, RETENTION_BAR, value <= RETENTION_BAR, _spread(ratios)
        ),
    ]


def decoding(both: Pair, rows: int, turns: int, said: str, bar: float | None) -> claim.Claim:
    """Steps with exchange over steps without."""
    here, there = both.apart(rows, SLOTS // 2), both.together(rows, 0)
    both.decode_apart(here, WARM)
    both.decode_together(there, WARM)
    ratios, steps_ns = [], []
    for _ in range(turns):
        alone_ns, step_ns = both.decode_apart(here, STEPS), both.decode_together(there, STEPS)
        ratios.append(step_ns / alone_ns)
        steps_ns.append(step_ns)
    both.close([*here[0], *here[1], *there])
    value = median(ratios)
    step_ms = median(steps_ns) / 1e6
    what = f"{rows} requests of {CONTEXT:,} tokens, {said}: step of {step_ms:.1f} ms over no exchange"
    return claim.Claim(what, value, bar, bar is None or value <= bar, _spread(ratios))


def _spread(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def main() -> None:
    options = claim.arguments(__doc__)
    turns = 5 if options.quick else 15
    first, second = sorted(os.sched_getaffinity(0))[:2]
    parts = []
    with pair((first, second), LinkConfig(), options.seed) as both:
        parts += retention(both, 2 * turns)
        for rows in (8, 16):
            parts.append(decoding(both, rows, turns, "shared memory", DECODE_BAR))
    beside = {
        "signed frames": ((first, second), LinkConfig(ways=())),
        "both on one core": ((first, first), LinkConfig()),
    }
    for said, (cores, links) in {} if options.quick else beside.items():
        with pair(cores, links, options.seed) as both:
            parts.append(decoding(both, 16, 3, said, None))
    claim.finish("esp_overhead", claim.together("elastic sequence parallelism costs", parts), options)


if __name__ == "__main__":
    main()
