"""DistServe's algorithm 1, for fast links between nodes: the best plan of each phase by itself, and as many
instances of each as keep pace. (Its algorithm 2 is the search among `candidate.low_affinity` ones.)

Each phase is served alone: prompts whose answers are one token, and answers whose prompts cost nothing.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from plait.cost.cost import ByInstance
from plait.planner.candidate import Candidate, Part
from plait.planner.fluid import Fluid
from plait.planner.placed import placed
from plait.planner.plans import Plan
from plait.planner.probe import Probe, Trial, tried
from plait.sim.scenario import Scenario
from plait.spec.cluster import Placement, Role
from plait.spec.errors import UserError
from plait.spec.slo import Slo
from plait.spec.step import Step

Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
"""The built-in `map`, or that of a pool of processes; answers come in order."""
UNLIMITED_NS = 10**18


@dataclass(frozen=True, slots=True)
class Free:
    """Steps that take no time: the phase that is not looked at."""

    def step_ns(self, step: Step) -> int:
        """See `Cost`."""
        return 1


@dataclass(frozen=True, slots=True)
class Independent:
    """Finds the candidate of algorithm 1."""

    fluid: Fluid
    probe: Probe
    usable: Sequence[Plan]
    most_devices: int
    most_count: int
    map: Map
    seed: int = 0
    count: int = 300

    def best(self) -> Candidate:
        """The plans with the most goodput of a device in each phase, in the ratio that wastes least.

        Raises:
            UserError: no plan meets one of the objectives.
        """
        trials = [self._prompts(plan) for plan in self.usable] + [self._answers(plan) for plan in self.usable]
        found = [each.rate_hz for each in self.map(tried, trials)]
        firsts, seconds = found[: len(self.usable)], found[len(self.usable) :]
        prefill, prefill_hz = self._most(firsts, "ttft")
        decode, decode_hz = self._most(seconds, "tpot")
        pairs = [
            Candidate((Part(Role.PREFILL, prefill, n), Part(Role.DECODE, decode, m)))
            for n in range(1, self.most_count + 1)
            for m in range(1, self.most_count + 1)
        ]
        fit = [each for each in pairs if each.devices <= self.most_devices] or pairs[:1]

        def waste(pair: Candidate) -> tuple[float, int]:
            n, m = (part.count for part in pair.parts)
            return (-min(n * prefill_hz, m * decode_hz) / pair.devices, pair.devices)

        return min(fit, key=waste)

    def _most(self, rates: Sequence[float], objective: str) -> tuple[Plan, float]:
        plan, rate_hz = max(zip(self.usable, rates, strict=True), key=lambda each: each[1] / each[0].devices)
        if not rate_hz:
            raise UserError(f"no plan that fits meets the objective {objective} alone: relax it", "slo")
        return plan, rate_hz

    def _prompts(self, plan: Plan) -> Trial:
        trace = [replace(row, output_tokens=1) for row in self.probe.trace]
        probe = replace(self.probe, trace=trace, slo=Slo(self.probe.slo.ttft_ns, UNLIMITED_NS))
        near_hz = 0.6 * self.fluid.speeds(Part(Role.PREFILL, plan)).prefill_hz
        return Trial(probe, self._pair(plan), self.seed, self.count, near_hz, 10 * near_hz)

    def _answers(self, plan: Plan) -> Trial:
        probe = replace(self.probe, slo=Slo(UNLIMITED_NS, self.probe.slo.tpot_ns))
        pair = self._pair(plan)
        cost = ByInstance({0: Free(), 1: self.fluid.plans.cost(plan)})
        slots = self.fluid.plans.slots(plan)
        free = replace(pair, cost=cost, slots={0: 4 * slots, 1: slots})
        near_hz = 0.8 * min(self.fluid.speeds(Part(Role.DECODE, plan)).decode_hz, 1e6) or 0.01
        return Trial(probe, free, self.seed, self.count, near_hz, 10 * near_hz)

    def _pair(self, plan: Plan) -> Scenario:
        """One instance of each phase, on nodes without number: links between the phases cost nothing here."""
        parts = Part(Role.PREFILL, plan), Part(Role.DECODE, plan)
        alone = Candidate(parts).instances(self.fluid.step_tokens)
        return placed(Placement(alone), self.fluid.plans)
