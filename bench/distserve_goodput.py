"""Does it help to prefill and decode on different GPUs? DistServe's five settings, on one cost model.

Three ways to serve compete: apart (placements of a few instances for each phase), together with prompts
first, and together with prompts in chunks. Each is the product's own core in virtual time, with DistServe's
measured A100 coefficients (the 94/95 cliff repaired), KV memory as measured, and transfers over NVLink. Of
each way the best of a few placements counts, chosen by a smaller trace. Goodput is the highest rate a GPU at
which 90 % of requests meet both objectives, 0 where no rate does; the tightest objectives are those at a
fixed rate, as a share of the stated ones. Lengths are fits to published means. OPT-175B has no measured
times: it takes the analytic form.

Labelled apart: vLLM's own coefficients for prompts first, beside what was published, which compared engines
whose kernels differ by a third.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from statistics import median

import claim
import numpy as np

from plait.cost.appendix import opt_175b
from plait.cost.coefficients import KV_TOKENS, on_a100
from plait.cost.cost import ByInstance, Staged
from plait.serving.admission import AdmissionConfig
from plait.serving.batcher import BatcherConfig
from plait.serving.manager import ManagerConfig
from plait.sim.copies import Network
from plait.sim.scenario import Scenario
from plait.spec.cluster import Instance, Link, Placement, Role
from plait.spec.shape import LayerShape, ModelShape
from plait.workload import arrivals
from plait.workload.applications import application_named
from plait.workload.result import Recorder
from plait.workload.trace import at_rate

Plan = tuple[int, int]
"""tp and pp."""
NVLINK = Link(300e9, 20_000)
"""One way of an A100's 600 GB/s."""
TOKEN_BYTES = {"opt-13b": 819_200, "opt-66b": 2_359_296, "opt-175b": 4_718_592}
OPT_175B = ModelShape(
    (LayerShape(heads=96, kv_heads=96, head_dim=128, hidden=12288, ffn=49152),) * 96,
    vocab=50272,
    hidden=12288,
    max_tokens=2048,
)
SHARE = 0.9
STEP = 1.04
"""Rates are found to 4 %, between 1/32 and 4 times the published one."""


@dataclass(frozen=True)
class Way:
    """Some instances, and how they batch."""

    kind: str
    """apart, prompts first or chunks."""
    prefill: tuple[Plan, ...]
    """Instances that take prompts; those of the other two kinds decode too."""
    decode: tuple[Plan, ...] = ()
    step_tokens: int = 512
    engine: str = "distserve"

    @property
    def devices(self) -> int:
        """GPUs."""
        return sum(tp * pp for tp, pp in self.prefill + self.decode)

    def __str__(self) -> str:
        plans = " + ".join(f"{tp}x{pp}" for tp, pp in self.prefill)
        if self.decode:
            plans += " -> " + " + ".join(f"{tp}x{pp}" for tp, pp in self.decode)
        return f"{self.kind} ({plans}{f', {self.step_tokens}' if self.kind == 'chunks' else ''})"


@dataclass(frozen=True)
class Setting:
    """A model, an application and its objectives."""

    name: str
    model: str
    application: str
    ttft_s: float
    tpot_s: float
    rate_hz: float
    """Requests a second and GPU at which objectives were tightened."""
    published: tuple[float, float]
    """Rate and objectives against vLLM (redrawn figures)."""
    apart: tuple[Way, ...]
    together: tuple[Plan, ...]

    def ways(self, kind: str) -> tuple[Way, ...]:
        """The candidates of one kind."""
        if kind == "apart":
            return self.apart
        sizes = (512, 2048) if kind == "chunks" else (4096,)
        return tuple(Way(kind, (plan,), (), size) for plan, size in product(self.together, sizes))


def _apart(*pairs: tuple[tuple[Plan, ...], tuple[Plan, ...]]) -> tuple[Way, ...]:
    return tuple(Way("apart", prefill, decode) for prefill, decode in pairs)


P41, P42, P22 = (4, 1), (4, 2), (2, 2)
FOR_66B = _apart(
    ((P41,), (P22,)), ((P41,), (P41,)), ((P41,) * 2, (P41,)), ((P41,) * 2, (P22,)), ((P41,) * 3, (P41,))
)
SETTINGS = (
    Setting(
        "13B chat", "opt-13b", "sharegpt", 0.25, 0.1, 1.5, (4.60, 1.74),
        _apart(
            (((2, 1),), ((1, 1),)), (((1, 1),) * 2, ((1, 1),)), (((2, 1),) * 2, ((1, 1),)),
            (((2, 1),) * 2, ((2, 1),)), (((2, 1),) * 3, ((1, 1),) * 2),
        ),
        ((1, 1), (2, 1)),
    ),
    Setting("66B chat", "opt-66b", "sharegpt", 2.5, 0.15, 0.25, (2.75, 3.14), FOR_66B, (P41, P22)),
    Setting(
        "175B chat (analytic)", "opt-175b", "sharegpt", 4.0, 0.2, 0.125, (1.99, 1.77),
        _apart((((3, 3),), ((4, 3),)), (((4, 3),), ((4, 3),))), ((8, 1), (4, 3)),
    ),
    Setting("66B code", "opt-66b", "humaneval", 0.125, 0.2, 0.875, (5.72, 1.35), FOR_66B, (P41, (8, 1))),
    Setting("66B summaries", "opt-66b", "longbench", 15.0, 0.15, 0.375, (4.24, 12.59), FOR_66B, (P41, P22)),
)  # fmt: skip
KINDS = ("apart", "prompts first", "chunks")


def scenario(setting: Setting, way: Way) -> Scenario:
    """The product's core on these instances."""
    apart = bool(way.decode)
    roles = [Role.PREFILL if apart else Role.MIXED] * len(way.prefill) + [Role.DECODE] * len(way.decode)
    plans = way.prefill + way.decode
    listed = [Instance(i, role, *plan) for i, (role, plan) in enumerate(zip(roles, plans, strict=True))]
    depth = 1 + max(pp for _, pp in plans)
    config = ManagerConfig(
        admission=AdmissionConfig(max_queue=1 << 20, max_rows=1024),
        batcher=BatcherConfig(way.step_tokens, way.kind == "prompts first", depth, prefix_cache=False),
    )
    return Scenario(
        Placement(tuple(listed)),
        ByInstance({i: cost(setting.model, plan, way.engine) for i, plan in enumerate(plans)}),
        {i: KV_TOKENS[setting.model][plan] for i, plan in enumerate(plans)},
        config,
        Network(TOKEN_BYTES[setting.model], NVLINK, NVLINK),
    )


def cost(model: str, plan: Plan, engine: str) -> Staged:
    """Measured, or for 175B analytic."""
    return opt_175b(OPT_175B, *plan) if model == "opt-175b" else on_a100(model, *plan, engine=engine)


@dataclass(frozen=True)
class Run:
    """A way under a trace of one seed."""

    setting: Setting
    way: Way
    seed: int
    count: int
    near_hz: float = 0.0
    """Where to look for goodput first, if anything is known."""

    def scales(self, rate_hz: float) -> np.ndarray:
        """Per request: by how much its objectives could be tightened, above 1 where one is missed."""
        rng = np.random.default_rng(self.seed)
        times = arrivals.poisson(rng, 1.0, self.count)
        drawn = application_named(self.setting.application).rows(rng, times)
        rows = at_rate(drawn, rate_hz * self.way.devices)
        recorder = Recorder()
        scenario(self.setting, self.way).run(rows, [recorder.see])
        assert all(record.completed for record in recorder.records), "a request was refused"
        first = [record.ttft_ns / self.setting.ttft_s for record in recorder.records]
        later = [record.tpot_ns / self.setting.tpot_s for record in recorder.records]
        return np.maximum(first, later) / 1e9

    def goodput_hz(self) -> float:
        """Highest rate a GPU, by bisection of its logarithm with one trace that is stretched."""
        low, high = (self.setting.rate_hz * times for times in (1 / 32, 4))
        if self.near_hz and self.holds(self.near_hz / 1.5):
            low, high = self.near_hz / 1.5, self.near_hz * 1.5
        elif not self.holds(low):
            return 0.0
        return claim.highest(self.holds, low, high, STEP)

    def holds(self, rate_hz: float) -> bool:
        """Whether enough requests meet their objectives."""
        return float(np.mean(self.scales(rate_hz) <= 1)) >= SHARE

    def tightest(self) -> float:
        """Smallest share of the objectives that holds at the setting's own rate."""
        return float(np.percentile(self.scales(self.setting.rate_hz), 100 * SHARE))


def goodput(run: Run) -> float:
    return run.goodput_hz()


def tightest(run: Run) -> float:
    return run.tightest()


def figures(
    pool: ProcessPoolExecutor, setting: Setting, seeds: Sequence[int], count: int, probe: int
) -> list[claim.Claim]:
    """Of one setting: each way's goodput and tightest objectives, and what being apart gains or loses."""
    candidates = [way for kind in KINDS for way in setting.ways(kind)]
    probed = dict(
        zip(candidates, pool.map(goodput, [Run(setting, way, 99, probe) for way in candidates]), strict=True)
    )
    best = [max(setting.ways(kind), key=lambda way: probed[way]) for kind in KINDS]
    if setting.model != "opt-175b":
        best.append(Way("prompts first", (setting.together[0],), (), 4096, "vllm"))
    runs = [Run(setting, way, seed, count, probed.get(way, 0.0)) for way in best for seed in seeds]
    rates = np.array(list(pool.map(goodput, runs))).reshape(len(best), len(seeds))
    scales = np.array(list(pool.map(tightest, runs))).reshape(len(best), len(seeds))
    found = []
    for way, rate, scale in zip(best, rates, scales, strict=True):
        label = f"{setting.name}: {way}" + (" [vLLM's engine]" if way.engine == "vllm" else "")
        found.append(_reported(f"{label}, goodput a GPU, req/s", rate))
        found.append(_reported(f"{label}, tightest objectives at {setting.rate_hz:g} req/s", scale))
    names = [*KINDS[1:], f"vLLM's engine (published {setting.published[0]} and {setting.published[1]})"]
    for at, name in enumerate(names[: len(best) - 1], 1):
        label, tighter = f"{setting.name}: apart against {name}", scales[at] / scales[0]
        if rates[at].min() > 0:
            gain = rates[0] / rates[at]
            found.append(_reported(f"{label}, rate, times ({_verdict(gain)})", gain))
        found.append(_reported(f"{label}, objectives, times ({_verdict(tighter)})", tighter))
    return found


def _verdict(gain: np.ndarray) -> str:
    """Wins or loses only where all seeds agree."""
    return "wins" if gain.min() > 1 else "LOSES" if gain.max() < 1 else "no difference"


def _reported(name: str, values: np.ndarray) -> claim.Claim:
    return claim.reported(name, float(median(values)), (float(values.min()), float(values.max())))


def main() -> None:
    options = claim.arguments(__doc__)
    seeds = range(options.seed, options.seed + (2 if options.quick else 5))
    count, probe = (120, 60) if options.quick else (3_000, 600)
    parts = []
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for setting in SETTINGS:
            parts += figures(pool, setting, seeds, count, probe)
    whole = f"prefill and decode apart and together: {count} requests, {len(seeds)} seeds"
    claim.finish("distserve_goodput", claim.together(whole, parts), options)


if __name__ == "__main__":
    main()
