"""`Roles`: of instances that are there, the roles that bear a workload fastest.

All assignments of roles, best bound first; each must bear more than the best before it, with the same
requests. Assignments that differ only in which of equal instances plays a role are one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

from plait.planner.candidate import Candidate, Part
from plait.planner.fluid import Fluid
from plait.planner.placed import placed
from plait.planner.plans import Plan, Plans
from plait.planner.probe import Probe, Trial, tried
from plait.serving.manager import ManagerConfig
from plait.sim.scenario import Scenario
from plait.spec.cluster import Instance, Placement, Role
from plait.spec.errors import UserError
from plait.spec.slo import Slo
from plait.workload.trace import TraceRow

ORDER = (Role.PREFILL, Role.DECODE, Role.MIXED)


@dataclass(frozen=True, slots=True)
class RolesConfig:
    """How much is tried."""

    requests: int = 400
    """Of a run."""
    runs: int = 8
    """Rates that are tried of an assignment."""
    gain: float = 1.1
    """Times what the present roles bear that others must bear to be worth a change."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Roles:
    """Chooses the roles of instances whose plans stay as they are."""

    plans: Plans
    slo: Slo
    manager: ManagerConfig
    """Of the core that serves: the simulation batches and admits as it does."""
    slots: int | None = None
    """KV tokens of each instance; None: what its devices have room for."""
    config: RolesConfig = field(default_factory=RolesConfig)

    def best(self, rows: Sequence[TraceRow], present: Placement) -> Placement:
        """The present instances in the roles for these requests; as few change as can be.

        Raises:
            UserError: there are no requests, or no roles meet the objectives for them.
        """
        if not rows:
            raise UserError("no request has ended: nothing is known of the workload", "trace")
        probe = Probe(rows, self.slo)
        sample = probe.requests(self.config.seed, self.config.requests)
        fluid = Fluid(self.plans, [sample], self.slo)
        now = counted(present)
        best, best_hz = now, self._bears(probe, fluid, now, present, 0.0)
        bar_hz = self.config.gain * best_hz
        others = [each for each in assignments(now) if each != now]
        bound_hz = {each: fluid.bound_hz(each) for each in others}
        for each in sorted(others, key=lambda each: (-bound_hz[each], each)):
            if bound_hz[each] <= bar_hz:
                break
            found_hz = self._bears(probe, fluid, each, assigned(present, each), bar_hz)
            if found_hz > bar_hz:
                best, best_hz, bar_hz = each, found_hz, found_hz
        if not best_hz:
            raise UserError("no roles of these instances meet the objectives: relax ttft or tpot", "slo")
        return assigned(present, best)

    def _bears(
        self, probe: Probe, fluid: Fluid, candidate: Candidate, placement: Placement, bar_hz: float
    ) -> float:
        """Requests/s; 0 where it does not bear `bar_hz`."""
        steady_hz = fluid.steady_hz(candidate)
        if not steady_hz:
            return 0.0
        near_hz = bar_hz or 0.7 * steady_hz
        scenario, config = self._scenario(placement), self.config
        most_hz, challenge = max(2 * steady_hz, near_hz), bar_hz > 0
        return tried(
            Trial(probe, scenario, config.seed, config.requests, near_hz, most_hz, config.runs, challenge)
        ).rate_hz

    def _scenario(self, placement: Placement) -> Scenario:
        there = placed(placement, self.plans)
        slots = there.slots if self.slots is None else self.slots
        return replace(there, config=self.manager, slots=slots)


def plan_of(instance: Instance) -> Plan:
    """How its devices share the model."""
    return Plan(instance.tp, instance.pp, instance.nodes)


def counted(placement: Placement) -> Candidate:
    """How many instances of each plan play each role."""
    parts = [Part(each.role, plan_of(each)) for each in placement.instances]
    return Candidate(tuple(replace(part, count=parts.count(part)) for part in sorted(dict.fromkeys(parts))))


def assignments(candidate: Candidate) -> Iterator[Candidate]:
    """The same instances in all roles that leave no phase alone, each once."""
    sizes: dict[Plan, int] = {}
    for part in candidate.parts:
        sizes[part.plan] = sizes.get(part.plan, 0) + part.count
    for shares in product(*(_shares(count) for count in sizes.values())):
        parts = [
            Part(role, plan, count)
            for plan, counts in zip(sizes, shares, strict=True)
            for role, count in zip(ORDER, counts, strict=True)
            if count
        ]
        if any(part.role.prefills for part in parts) and any(part.role.decodes for part in parts):
            yield Candidate(tuple(sorted(parts)))


def assigned(placement: Placement, candidate: Candidate) -> Placement:
    """The instances of `placement` in the roles of `candidate`: who can keep a role keeps it."""
    left = {(part.plan, part.role): part.count for part in candidate.parts}
    role_of: dict[int, Role] = {}
    for keeps in (True, False):
        for each in placement.instances:
            free = [role for role in ORDER if left.get((plan_of(each), role), 0)]
            if each.id in role_of or (keeps and each.role not in free):
                continue
            role = role_of[each.id] = each.role if keeps else free[0]
            left[plan_of(each), role] -= 1
    return Placement(tuple(replace(each, role=role_of[each.id]) for each in placement.instances))


def _shares(count: int) -> list[tuple[int, int, int]]:
    """Ways to divide `count` instances among three roles."""
    return [(n, m, count - n - m) for n in range(count + 1) for m in range(count - n + 1)]
