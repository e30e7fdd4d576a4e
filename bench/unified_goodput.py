"""One manager for all lengths: goodput against each pure policy. Simulated.

LLaMA3-8B on 16 A100 (llama_world.py), prompts and answers drawn from the Azure and the Mooncake
conversations, Poisson arrivals, no prefix cache. A request meets its objectives if TTFT and TPOT are within
so many times what it takes alone; goodput is the highest rate at which 90 % do. Each policy is tuned on the
first half of a trace (the best of its settings) and judged on the second; `auto` is the policy that won on
the first. Callers ask for as many tokens as they draw, so all policies know that.

chunks     decoding rows and chunks of prompts together, on instances of tp 1 to 8
apart      prefill and decode instances (DistServe)
elastic    elastic groups, where a pause is weighed by lengths (LoongServe)
unified    elastic groups that keep to the objective for the time between tokens, and compute prompts as they
           are due
"""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import claim
import numpy as np
from kept import Kept
from llama_world import (
    INSTANCES,
    NETWORK,
    NVLINK,
    SHARE,
    TIMES,
    Hopeless,
    Misses,
    alone,
    alone_ns,
    groups,
    scales,
    slots,
)

from plait.cost.cost import ByInstance
from plait.serving.admission import AdmissionConfig
from plait.serving.batcher import BatcherConfig
from plait.serving.elasticity import ElasticConfig
from plait.serving.manager import ManagerConfig
from plait.sim.copies import Network
from plait.sim.scenario import Scenario
from plait.spec.cluster import Instance, Placement, Role
from plait.workload import arrivals
from plait.workload.result import Recorder
from plait.workload.trace import TraceRow, at_rate, read_trace

TRACES = {
    "azure": ("AzureLLMInferenceTrace_conv.csv", "azure", 10.0),
    "mooncake": ("mooncake_conversation_trace.jsonl", "mooncake", 1.0),
}
"""File, form, and a rate that every policy bears at some multiple."""
FOLDER = Path(__file__).parents[1].parent / "shared/data/traces"
STEP, STEPS = 1.04, 130
"""Rates that are tried: a ladder of so many steps."""
MULTIPLES = (3.0, 5.0, 8.0, 12.0)
COUNT, QUICK = {"azure": 2000, "mooncake": 800}, {"azure": 300, "mooncake": 100}
"""Requests of a run."""
GAIN, NEVER_WORSE = 1.3, 0.98
KV_BYTES = 131_072
"""Of a token."""
MOVE_NS = KV_BYTES / NVLINK.bandwidth * 1e9
"""Of a token."""
MOVING = Network(KV_BYTES, NVLINK, NETWORK)


@dataclass(frozen=True)
class Setting:
    """A policy with its numbers."""

    policy: str
    tp: int = 1
    step_tokens: int = 4096
    prefills: int = 0
    """Instances that prefill, of `tp` devices."""
    decode_tp: int = 1
    chunk_ns: float = 1e9
    moves: bool = False
    """Rows leave instances to prompts, by moving."""

    def scenario(self, times: float, tpot_ns: float) -> Scenario:
        """The cluster under this policy; objectives are so many times what requests take alone, the median of
        which is `tpot_ns` between tokens."""
        if self.policy in ("elastic", "unified"):
            aims = {"tpot_ns": times * tpot_ns, "ttft_times": times} if self.policy == "unified" else {}
            cost, count = groups(self.tp), INSTANCES // self.tp
            if self.moves:
                aims["move_token_ns"] = MOVE_NS
            elastic = ElasticConfig(cost.widths, decode_ns=20e6, chunk_ns=self.chunk_ns, **aims)
            there = Placement(tuple(Instance(i, Role.ELASTIC, self.tp) for i in range(count)))
            return Scenario(there, cost, slots(self.tp), self._manager(elastic), MOVING)
        if self.policy == "chunks":
            there = Placement(tuple(Instance(i, Role.MIXED, self.tp) for i in range(INSTANCES // self.tp)))
            return Scenario(there, alone(self.tp), slots(self.tp), self._manager())
        decodes = (INSTANCES - self.prefills * self.tp) // self.decode_tp
        first = [Instance(i, Role.PREFILL, self.tp) for i in range(self.prefills)]
        then = [Instance(self.prefills + i, Role.DECODE, self.decode_tp) for i in range(decodes)]
        both = (*first, *then)
        cost = ByInstance({each.id: alone(each.tp) for each in both})
        room = {each.id: slots(each.tp) for each in both}
        return Scenario(Placement(both), cost, room, self._manager(), MOVING)

    def _manager(self, elastic: ElasticConfig | None = None) -> ManagerConfig:
        return ManagerConfig(
            admission=AdmissionConfig(max_queue=1 << 20, max_rows=1024),
            batcher=BatcherConfig(self.step_tokens, prefix_cache=False),
            elastic=elastic or ElasticConfig(),
        )


SETTINGS = (
    *(
        Setting("chunks", tp, tokens)
        for tp, tokens in ((1, 2048), (2, 2048), (2, 4096), (4, 2048), (8, 8192))
    ),
    *(
        Setting("apart", tp, prefills=n, decode_tp=then)
        for tp, n, then in ((1, 10, 1), (1, 12, 1), (2, 5, 1), (2, 6, 2), (2, 7, 2), (4, 3, 4))
    ),
    *(Setting("elastic", tp, chunk_ns=ns) for tp in (1, 2) for ns in (1e9, 4e9)),
    *(Setting("elastic", 2, chunk_ns=ns, moves=True) for ns in (1e9, 4e9)),
    *(Setting("unified", tp, chunk_ns=ns) for tp in (1, 2) for ns in (1.3e8, 3e8, 1e9)),
    *(Setting("unified", 2, chunk_ns=ns, moves=True) for ns in (1.3e8, 3e8, 1e9)),
)
Found = Mapping[float, float]


@dataclass(frozen=True)
class Half:
    """Half of a trace, resampled."""

    trace: str
    second: bool
    count: int
    seed: int

    def rows(self) -> list[TraceRow]:
        """Requests that come at one a second."""
        name, form, _ = TRACES[self.trace]
        known = read_trace(FOLDER / name, form, 20_000)
        middle = len(known) // 2
        known = known[middle:] if self.second else known[:middle]
        rng = np.random.default_rng([self.seed, self.second])
        times = arrivals.poisson(rng, 1.0, self.count).tolist()
        drawn = [known[i] for i in rng.integers(len(known), size=self.count)]
        return [
            TraceRow(at, row.prompt_tokens, row.output_tokens) for at, row in zip(times, drawn, strict=True)
        ]


@dataclass(frozen=True)
class Search:
    """A setting on half of a trace, for these multiples of the latencies alone."""

    half: Half
    multiples: tuple[float, ...]
    setting: Setting


def goodput(search: Search) -> dict[float, float]:
    """Requests/s by the multiple that must be met; 0: none of the ladder's rates."""
    half, multiples, setting = search.half, search.multiples, search.setting
    rows, first_hz = half.rows(), TRACES[half.trace][2] / 4
    tpot_ns = float(np.median([alone_ns(row.prompt_tokens, row.output_tokens)[1] for row in rows]))
    met: dict[tuple[int, float], np.ndarray] = {}

    def share(at: int, times: float) -> float:
        # Only `unified` is told the objective; to the others all multiples are the same run.
        key = at, times if setting.policy == "unified" else 0.0
        if key not in met:
            recorder = Recorder()
            largest = times if setting.policy == "unified" else max(multiples)
            misses = Misses(recorder, largest, len(rows) - ceil(SHARE * len(rows)))
            watched = [recorder.see, misses.see]
            try:
                setting.scenario(times, tpot_ns).run(at_rate(rows, first_hz * STEP**at), watched)
                met[key] = scales(recorder.records)
            except Hopeless:
                met[key] = np.full(len(rows), np.inf)
        return float(np.mean(met[key] <= times))

    found = {}
    for times in multiples:
        low, high = -1, STEPS
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if share(middle, times) >= SHARE else (low, middle)
        found[times] = first_hz * STEP**low if low >= 0 else 0.0
    return found


def settings(quick: bool) -> list[Setting]:
    """All, or the last of each policy."""
    last = {each.policy: each for each in SETTINGS}
    return list(last.values()) if quick else list(SETTINGS)


def tuned(
    found: Mapping[Setting, Found], times: float, kind: Callable[[Setting], str] = lambda each: each.policy
) -> Mapping[str, Setting]:
    """The best setting of each policy, or other kind."""
    best: dict[str, Setting] = {}
    for each in found:
        before = best.get(kind(each))
        if before is None or found[each][times] > found[before][times]:
            best[kind(each)] = each
    return best


def judged(trace: str, quick: bool, seed: int, pool: ProcessPoolExecutor, kept: Kept) -> list[claim.Claim]:
    """The curve of a trace, and what is claimed of it."""
    count, multiples = (QUICK[trace], (TIMES,)) if quick else (COUNT[trace], MULTIPLES)
    tried = settings(quick)

    def goodputs(second: bool, tried: Sequence[Setting]) -> dict[Setting, Found]:
        half = Half(trace, second, count, seed)
        found = kept.map(pool, goodput, [Search(half, multiples, setting) for setting in tried])
        return dict(zip(tried, found, strict=True))

    first = goodputs(False, tried)
    second = goodputs(True, list(dict.fromkeys(s for t in multiples for s in tuned(first, t).values())))
    parts = []
    for times in multiples:
        best = tuned(first, times)
        hz = {policy: second[setting][times] for policy, setting in best.items()}
        said = f"{trace}, {times:g} times"
        parts += [claim.Claim(f"{said}: {p}, requests/s", each, None, True) for p, each in hz.items()]
        pure = max(each for policy, each in hz.items() if policy != "unified")
        auto = hz[max(best, key=lambda policy: first[best[policy]][times])]
        if times == TIMES:
            parts.append(
                claim.at_least(f"{said}: unified over the best pure policy", hz["unified"] / pure, GAIN)
            )
        if max(hz.values()) > 0:
            share = auto / max(hz.values())
            parts.append(claim.at_least(f"{said}: auto over the best policy", share, NEVER_WORSE))
    return parts


def main() -> None:
    """See the module."""
    given = claim.arguments(__doc__)
    kept = Kept("unified_goodput", "unified_goodput.py", "llama_world.py")
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        parts = [part for trace in TRACES for part in judged(trace, given.quick, given.seed, pool, kept)]
    claim.finish("unified_goodput", claim.together("all lengths by one manager, simulated", parts), given)


if __name__ == "__main__":
    main()
