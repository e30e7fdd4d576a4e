"""Elastic groups against what they replace, by LoongServe's workloads and rules. Simulated on one cost model.

Eight A800 serve LWM-7B as six systems: four elastic instances of tp 2, one instance of tp 8, one of sp 4 and
tp 2, four of tp 2, tp 8 with prompts in chunks, and prefill on tp 4 apart from decode on tp 4. Times are
LoongServe's figure 3; those of tp 2 and tp 4 alone, and of groups of fewer than four, are derived from it.
Each is the product's own core in virtual time. The rule is the published one: the highest rate at which the
mean normalised latency (from arrival to the end, per token) is at most 25 times that of a lightly loaded
system; where constants were published they count, else one request at a time on sp 4 and tp 2 says it.

Requests arrive for as long as the rule lets all of them wait: a short burst could be borne at any rate. What
is found is up to three times what a system bears for ever, and so for each; ratios are what it is about.

Of the published data sets only the ranges of prompt lengths are known: lengths are drawn evenly on a
logarithmic scale, answers geometrically with means that are assumed. Nobody shares prefixes here.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import median

import claim
import numpy as np
from kept import Kept

from plait.cost.by_group import ByGroup, lwm_7b, lwm_7b_alone, lwm_7b_groups
from plait.cost.cost import ByInstance
from plait.serving.admission import AdmissionConfig
from plait.serving.batcher import BatcherConfig
from plait.serving.elasticity import ElasticConfig
from plait.serving.manager import ManagerConfig
from plait.sim.copies import Network
from plait.sim.scenario import Scenario
from plait.spec.cluster import Instance, Link, Placement, Role
from plait.spec.command import Command, End
from plait.spec.event import Arrived, Event
from plait.workload import arrivals
from plait.workload.result import Recorder, RequestRecord
from plait.workload.trace import TraceRow, at_rate, read_trace

TRACES = Path(__file__).parents[1].parent / "shared/data/traces"
TOKEN_BYTES = 524_288
"""KV of a token: 32 layers of 32 heads of 128, bf16."""
SLOTS = {tp: int((tp * 0.9 * 80e9 - 13.5e9) / TOKEN_BYTES) for tp in (2, 4, 8)}
"""What weights leave of nine tenths of the memory."""
NVLINK = Link(400e9, 20_000)
SYSTEMS = (
    "elastic",
    "elastic, no scale-up",
    "tp 8",
    "sp 4, tp 2",
    "4 x tp 2",
    "chunks, tp 8",
    "apart, 2 x tp 4",
)
LIGHT = 25
"""Times the latency of a lightly loaded system."""
SPANS = 1.0
"""Times the waiting of all requests that the rule allows, for which they arrive in a full run."""
MOST = 60_000
"""Requests of a run; as many as a trace has, if those are fewer."""
STEP = 1.15
"""Rates are found to 15 %."""
Draw = Callable[[np.random.Generator, int], list[TraceRow]]


@dataclass(frozen=True)
class DataSet:
    """Requests, and what was published about them."""

    name: str
    draw: Draw
    """At about one request a second."""
    count: int
    """Fewest requests of a full run."""
    chunk: int
    """Tokens of a step of the system with chunks."""
    token_ms: float | None
    """Highest mean latency per token; None: `LIGHT` times that of a lightly loaded system."""
    published: Mapping[str, float]
    """System -> by how much elastic beat it."""


def evenly(low: int, high: int, answer: float) -> Draw:
    """Prompts from `low` to `high` tokens on a logarithmic scale, answers of this mean."""

    def draw(rng: np.random.Generator, count: int) -> list[TraceRow]:
        prompts = np.exp(rng.uniform(np.log(low), np.log(high), count)).astype(int)
        return _rows(rng, prompts, rng.geometric(1 / answer, count))

    return draw


def mixed(*draws: Draw) -> Draw:
    """As many of each."""

    def draw(rng: np.random.Generator, count: int) -> list[TraceRow]:
        each = [rows for one in draws for rows in one(rng, -(-count // len(draws)))]
        chosen = rng.permutation(len(each))[:count]
        lengths = [(each[i].prompt_tokens, each[i].output_tokens) for i in chosen]
        return _rows(rng, *(np.array(column) for column in zip(*lengths, strict=True)))

    return draw


def traced(file: str, form: str) -> Draw:
    """A part of a trace, beginning anywhere, without its hashes."""

    def draw(rng: np.random.Generator, count: int) -> list[TraceRow]:
        rows = _trace(file, form)
        count = min(count, len(rows))
        first = int(rng.integers(len(rows) - count + 1))
        begin_ns = rows[first].arrival_ns
        part = rows[first : first + count]
        return [replace(r, arrival_ns=r.arrival_ns - begin_ns, block_hashes=(), block_tokens=0) for r in part]

    return draw


@cache
def _trace(file: str, form: str) -> list[TraceRow]:
    return read_trace(TRACES / file, form)


def _rows(rng: np.random.Generator, prompts: np.ndarray, answers: np.ndarray) -> list[TraceRow]:
    times = arrivals.poisson(rng, 1.0, len(prompts)).tolist()
    columns = zip(times, prompts.tolist(), answers.tolist(), strict=True)
    return [TraceRow(*row) for row in columns]


CHAT, EXAMS, BOOKS = evenly(4, 2_300, 200), evenly(2_700, 210_500, 100), evenly(15_100, 497_300, 20)
DATA = (
    DataSet("ShareGPT-like", CHAT, 4000, 256, 92.0,
            {"tp 8": 4.64, "chunks, tp 8": 1.27, "apart, 2 x tp 4": 2.84}),
    DataSet("L-Eval-like", EXAMS, 400, 2048, 3.5,
            {"tp 8": 2.11, "chunks, tp 8": 1.96, "apart, 2 x tp 4": 5.81}),
    DataSet("LV-Eval-like", BOOKS, 400, 16_384, 2.5, {"tp 8": 2.23, "chunks, tp 8": 2.44}),
    DataSet("mixed", mixed(CHAT, EXAMS, BOOKS), 600, 2048, 70.0, {"tp 8": 2.66, "chunks, tp 8": 3.85}),
    DataSet("Azure conversations", traced("AzureLLMInferenceTrace_conv.csv", "azure"), 1500, 512, None, {}),
    DataSet("Mooncake conversations", traced("mooncake_conversation_trace.jsonl", "mooncake"), 600, 2048,
            None, {}),
)  # fmt: skip


def scenario(system: str, chunk: int) -> Scenario:
    """The product's core on the instances of a system."""
    config = ManagerConfig(
        admission=AdmissionConfig(max_queue=1 << 20, max_rows=1024),
        batcher=BatcherConfig(600_000, prompts_first=True, prefix_cache=False),
    )
    if system.startswith("elastic"):
        groups = lwm_7b_groups()
        config = replace(config, elastic=elastic(groups, scale_up=system == "elastic"))
        return Scenario(_alike(4, Role.ELASTIC, 2), groups, SLOTS[2], config)
    if system.startswith("chunks"):
        config = replace(config, batcher=BatcherConfig(chunk, prefix_cache=False))
        return Scenario(_alike(1, Role.MIXED, 8), lwm_7b_alone(8), SLOTS[8], config)
    if system.startswith("apart"):
        pair = (Instance(0, Role.PREFILL, 4), Instance(1, Role.DECODE, 4))
        cost = ByInstance(dict.fromkeys((0, 1), lwm_7b_alone(4)))
        network = Network(TOKEN_BYTES, NVLINK, NVLINK)
        return Scenario(Placement(pair), cost, SLOTS[4], config, network)
    if system == "4 x tp 2":
        return Scenario(_alike(4, Role.MIXED, 2), lwm_7b_alone(2), SLOTS[2], config)
    if system == "tp 8":
        return Scenario(_alike(1, Role.MIXED, 8), lwm_7b_alone(8), SLOTS[8], config)
    return Scenario(_alike(1, Role.MIXED, 8), lwm_7b(4, 2), 4 * SLOTS[2], config)


def _alike(count: int, role: Role, tp: int) -> Placement:
    return Placement(tuple(Instance(i, role, tp) for i in range(count)))


def elastic(groups: ByGroup, scale_up: bool) -> ElasticConfig:
    """Decisions by the same times as the simulation's."""
    return ElasticConfig(groups.widths, master_rows=128 if scale_up else 1 << 30)


class Hopeless(Exception):
    """The mean latency per token will be above the limit, whatever comes."""


class Bound:
    """Ends a run once the latencies of requests up to now, ended or not, are too long together."""

    def __init__(self, tokens: Sequence[int], limit_ms: float) -> None:
        """`tokens` are those of each request, prompt and answer."""
        self._tokens = tokens
        self._most_ns = limit_ms * 1e6 * len(tokens)
        self._ended_ns = 0.0
        self._rate = self._begun_ns = 0.0
        """Of those that have not ended: sums of 1 and of the arrival, per token."""
        self._arrivals: dict[int, int] = {}

    def see(self, now_ns: int, event: Event, commands: Sequence[Command]) -> None:
        """Take one call of `handle`.

        Raises:
            Hopeless: the rule is broken.
        """
        if isinstance(event, Arrived):
            self._count(event.request.id, now_ns, 1)
            self._arrivals[event.request.id] = now_ns
        for command in commands:
            if isinstance(command, End):
                arrival_ns = self._arrivals.pop(command.request)
                self._count(command.request, arrival_ns, -1)
                self._ended_ns += (now_ns - arrival_ns) / self._tokens[command.request]
        if self._ended_ns + now_ns * self._rate - self._begun_ns > self._most_ns:
            raise Hopeless

    def _count(self, request: int, arrival_ns: int, by: int) -> None:
        self._rate += by / self._tokens[request]
        self._begun_ns += by * arrival_ns / self._tokens[request]


@dataclass(frozen=True)
class Run:
    """A system under the requests of one seed."""

    data: str
    system: str
    seed: int
    count: int
    spans: float
    near_hz: float = 0.0
    """Where to look first, if anything is known."""

    @property
    def of(self) -> DataSet:
        """By its name: what draws does not travel between processes."""
        return next(each for each in DATA if each.name == self.data)

    def records(self, rate_hz: float, limit_ms: float = float("inf")) -> Sequence[RequestRecord]:
        """What happened to each request.

        Raises:
            Hopeless: the mean latency per token is above the limit.
        """
        rows = self._rows(rate_hz, limit_ms)
        recorder = Recorder()
        bound = Bound([row.prompt_tokens + row.output_tokens for row in rows], limit_ms)
        scenario(self.system, self.of.chunk).run(at_rate(rows, rate_hz), [recorder.see, bound.see])
        return recorder.records

    def _rows(self, rate_hz: float, limit_ms: float) -> list[TraceRow]:
        """As many as arrive while all may wait `spans` times."""
        rows = self.of.draw(np.random.default_rng(self.seed), self.count)
        if limit_ms == float("inf"):
            return rows
        wait_s = limit_ms / 1e3 / np.mean([1 / (row.prompt_tokens + row.output_tokens) for row in rows])
        wanted = min(MOST, int(rate_hz * self.spans * wait_s))
        return self.of.draw(np.random.default_rng(self.seed), wanted) if wanted > self.count else rows

    def goodput_hz(self) -> float:
        """Highest rate that the rule allows, by bisection of its logarithm; 0 where a request is refused."""
        low, high = 1 / 64, 1024.0
        if self.near_hz and self.holds(self.near_hz / 2):
            low, high = self.near_hz / 2, self.near_hz * 2
        elif not self.holds(low):
            return 0.0
        return claim.highest(self.holds, low, high, STEP)

    def holds(self, rate_hz: float) -> bool:
        """Whether the mean latency per token keeps the rule."""
        limit_ms = self.of.token_ms or LIGHT * lightly_loaded_ms(self.data, self.seed)
        try:
            return token_ms(self.records(rate_hz, limit_ms)) <= limit_ms
        except Hopeless:
            return False


@cache
def lightly_loaded_ms(data: str, seed: int) -> float:
    """Mean latency per token of 50 requests, each alone on sp 4 and tp 2."""
    return token_ms(Run(data, "sp 4, tp 2", seed, 50, 0.0).records(1e-4))


def token_ms(records: Sequence[RequestRecord]) -> float:
    """Mean over requests of the time from arrival to end per token, prompt included."""
    if not all(record.completed for record in records):
        return float("inf")
    return float(np.mean([r.e2e_ns / (r.prompt_tokens + r.output_tokens) for r in records])) / 1e6


def goodput(run: Run) -> float:
    return run.goodput_hz()


def figures(
    pool: ProcessPoolExecutor, kept: Kept, data: DataSet, seeds: Sequence[int], share: float
) -> list[claim.Claim]:
    """Of one data set: each system's rate, and what elastic gains over it, from this share of requests."""
    shape = int(data.count * share), SPANS * share
    first = [Run(data.name, system, seeds[0], *shape) for system in SYSTEMS]
    near = dict(zip(SYSTEMS, kept.map(pool, goodput, first), strict=True))
    runs = [Run(data.name, system, seed, *shape, near[system]) for system in SYSTEMS for seed in seeds[1:]]
    later = kept.map(pool, goodput, runs)
    found, rates = [], {}
    for at, system in enumerate(SYSTEMS):
        each = len(seeds) - 1
        rates[system] = np.array([near[system], *later[at * each : (at + 1) * each]])
        found.append(_reported(f"{data.name}: {system}, requests/s", rates[system]))
    for system in SYSTEMS[1:]:
        label = f"{data.name}: elastic over {system}"
        if system in data.published:
            label += f" (published {data.published[system]})"
        if rates[system].min() > 0:
            found.append(_reported(label, rates["elastic"] / rates[system]))
    return found


def _reported(name: str, values: np.ndarray) -> claim.Claim:
    return claim.reported(name, float(median(values)), (float(values.min()), float(values.max())))


def main() -> None:
    """See the module."""
    options = claim.arguments(__doc__)
    seeds = range(options.seed, options.seed + (2 if options.quick else 5))
    parts, kept = [], Kept("loongserve_goodput", "loongserve_goodput.py")
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for data in DATA:
            if data.token_ms is None and not TRACES.exists():
                continue
            parts += figures(pool, kept, data, seeds, 0.1 if options.quick else 1.0)
    whole = f"elastic groups and what they replace, simulated: {len(seeds)} seeds"
    claim.finish("loongserve_goodput", claim.together(whole, parts), options)


if __name__ == "__main__":
    main()
