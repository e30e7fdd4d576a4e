"""Fluid bounds: the rate at which a candidate's instances would be busy all the time, from costs alone.

They bound from above: whatever waits for a step, for memory or for a link only takes away. A measured rate
may still pass its bound a little, because a finite run ends before its queues are full (`SLACK`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from plait.cost.cost import Cost, Staged
from plait.planner.candidate import Candidate, Part
from plait.planner.plans import Plan, Plans, single
from plait.spec.cluster import Role
from plait.spec.slo import Slo
from plait.spec.step import Row, Step
from plait.workload.trace import TraceRow

NS = 1e9
SLACK = 1.1
SAMPLE = 200
"""Requests of which step times are taken."""
WAIT_P90 = 2.3
"""Ninth decile over mean of an exponential wait."""
HYBRID: Mapping[str, float] = MappingProxyType({"disaggregated": 0.95, "hybrid": 0.7})
"""Share of the bound that was seen to be reached: a flexible instance is not used as well as a plan would."""
MAX_ROWS = 256
"""Rows of a batch, as the serving core limits them."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What requests ask for."""

    prompts: tuple[int, ...]
    outputs: tuple[int, ...]

    @staticmethod
    def of(rows: Sequence[TraceRow]) -> "Demand":
        """An even sample of a trace."""
        step = max(1, len(rows) // SAMPLE)
        picked = rows[::step][:SAMPLE]
        return Demand(tuple(r.prompt_tokens for r in picked), tuple(r.output_tokens for r in picked))

    @property
    def prompt(self) -> float:
        """Mean tokens of a prompt."""
        return float(np.mean(self.prompts))

    @property
    def steps(self) -> float:
        """Mean decode steps of a request: the first token is the prefill's."""
        return float(np.mean(self.outputs)) - 1

    @property
    def context(self) -> float:
        """Mean tokens in the cache of a row that decodes; long outputs stay longer."""
        prompts, outputs = np.array(self.prompts), np.array(self.outputs)
        return float(((prompts + outputs / 2) * outputs).sum() / outputs.sum())


@dataclass(frozen=True, slots=True)
class Speeds:
    """Requests/s of one instance."""

    prefill_hz: float
    decode_hz: float
    """Infinite where outputs are one token."""
    mixed_hz: float
    alone: float
    """Share of requests that meet the objectives on an idle instance."""
    ttft_ns: int
    """Of the prompt that nine of ten are shorter than, on an idle instance."""
    tpot_ns: int
    """Of a request that decodes alone."""


@dataclass(slots=True)
class Fluid:
    """Bounds of candidates; keeps those of each plan."""

    plans: Plans
    demand: Demand
    slo: Slo
    _speeds: dict[Plan, Speeds] = field(default_factory=dict)

    def step_tokens(self, part: Part) -> int:
        """Where only prompts run, what saturates the devices; else what the objective for TPOT allows."""
        saturation = self.plans.saturation(part.plan)
        if part.role is Role.PREFILL:
            return saturation
        return min(max(saturation, 512), self.plans.chunk(part.plan, self.slo.tpot_ns))

    def speeds(self, plan: Plan) -> Speeds:
        """Of one instance with this plan."""
        if plan not in self._speeds:
            cost = self.plans.cost(plan)
            ttft_ns = np.array([cost.step_ns(single(tokens)) for tokens in self.demand.prompts])
            again_ns = cost.step_ns(_decodes(1, self.demand.context)) if self.demand.steps else 0
            met = ttft_ns <= self.slo.ttft_ns if again_ns <= self.slo.tpot_ns else np.zeros(1)
            self._speeds[plan] = Speeds(
                self._prefill_hz(plan, cost),
                self._decode_hz(plan, cost),
                self._mixed_hz(plan, cost),
                float(met.mean()),
                int(np.percentile(ttft_ns, 90)),
                again_ns,
            )
        return self._speeds[plan]

    def bound_hz(self, candidate: Candidate) -> float:
        """Most requests/s of one copy."""
        prefill = decode = mixed = 0.0
        spare: Speeds | None = None
        for part in candidate.parts:
            speeds = self.speeds(part.plan)
            if part.role is Role.PREFILL:
                prefill += part.count * speeds.prefill_hz
            elif part.role is Role.DECODE:
                decode += part.count * speeds.decode_hz
            else:
                mixed += part.count * speeds.mixed_hz
                spare = speeds
        if spare is None:
            return min(prefill, decode, self._links_hz(candidate))
        if candidate.kind == "colocated":
            return mixed
        # The flexible instance takes what the scarcer phase lacks.
        low, high = min(prefill, decode), max(prefill, decode)
        lent = spare.prefill_hz if prefill < decode else spare.decode_hz
        return low + mixed if low + mixed > high else min(low + lent, high + mixed)

    def guess_hz(self, candidate: Candidate) -> float:
        """What is left of the bound when nine of ten first tokens must come in time: waits as in a queue with
        constant service times, shared by all instances that prefill. It decides what is tried, and where
        first, never what is reported."""
        able = [part for part in candidate.parts if part.role.prefills]
        alone_ns = max(self.speeds(part.plan).ttft_ns for part in able)
        spare_ns = max(self.slo.ttft_ns - alone_ns, 0)
        load = spare_ns / (spare_ns + WAIT_P90 / 2 * alone_ns)
        shared: float = load ** (1 / math.sqrt(sum(part.count for part in able)))
        if candidate.kind == "colocated":
            return self.bound_hz(candidate) * shared
        first = sum(part.count * self.speeds(part.plan).prefill_hz for part in able)
        return min(first * shared, self.bound_hz(candidate) * HYBRID[candidate.kind])

    def alone(self, candidate: Candidate) -> float:
        """Most requests, as a share, that could meet the objectives if nobody ever waited."""
        shares = [self.speeds(part.plan) for part in candidate.parts]
        return max(each.alone for each in shares) if candidate.kind != "colocated" else shares[0].alone

    def _links_hz(self, candidate: Candidate) -> float:
        """KV over the links of the instances that decode; within a node or not, the faster counts."""
        cluster = self.plans.cluster
        moved = self.demand.prompt * self.plans.shape.kv_bytes_per_token
        into = sum(part.count for part in candidate.parts if part.role is Role.DECODE)
        return into * max(cluster.local.bandwidth, cluster.remote.bandwidth) / moved

    def _prefill_hz(self, plan: Plan, cost: Cost) -> float:
        """Prompts in order, packed up to saturation; a pipeline is as fast as its slowest stage."""
        most = self.plans.saturation(plan)
        packs: list[list[int]] = [[]]
        for tokens in self.demand.prompts:
            if packs[-1] and sum(packs[-1]) + tokens > most:
                packs.append([])
            packs[-1].append(tokens)
        busy_ns = sum(_slowest_ns(cost, _prompts(pack)) for pack in packs)
        return len(self.demand.prompts) / busy_ns * NS

    def _decode_hz(self, plan: Plan, cost: Cost) -> float:
        """The best batch that TPOT and memory allow. All rows of an instance are in each of its steps, so its
        stages work one after another."""
        if self.demand.steps == 0:
            return float("inf")
        context = self.demand.context
        best = 0.0
        for rows in _batches(min(MAX_ROWS, int(self.plans.slots(plan) / context))):
            step_ns = cost.step_ns(_decodes(rows, context))
            if step_ns <= self.slo.tpot_ns:
                best = max(best, rows / step_ns * NS / self.demand.steps)
        return best

    def _mixed_hz(self, plan: Plan, cost: Cost) -> float:
        """Steps of decodes and of as many prompt tokens as keep their number, on average."""
        demand = self.demand
        if demand.steps == 0:
            return self._prefill_hz(plan, cost)
        best = 0.0
        for rows in _batches(min(MAX_ROWS, int(self.plans.slots(plan) / demand.context))):
            fresh = rows * demand.prompt / demand.steps
            chunk = (Row(-1, 0, max(1, round(fresh)), draws=True),)
            step_ns = cost.step_ns(_decodes(rows, demand.context, chunk))
            if step_ns <= self.slo.tpot_ns:
                best = max(best, rows / step_ns * NS / demand.steps)
        return best


def _prompts(pack: Sequence[int]) -> Step:
    return Step(0, (0,), tuple(Row(i, 0, tokens, draws=True) for i, tokens in enumerate(pack)))


def _decodes(rows: int, context: float, chunk: tuple[Row, ...] = ()) -> Step:
    return Step(0, (0,), chunk, again=tuple(range(rows)), context_tokens=round(rows * context))


def _slowest_ns(cost: Cost, step: Step) -> int:
    return max(cost.stages_ns(step)) if isinstance(cost, Staged) else cost.step_ns(step)


def _batches(most: int) -> list[int]:
    """Sizes a quarter apart."""
    sizes = {most} if most > 0 else set()
    size = 1.0
    while size <= most:
        sizes.add(round(size))
        size *= 1.25
    return sorted(sizes)
