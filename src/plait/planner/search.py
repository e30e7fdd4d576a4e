"""`Search`: bounds for every candidate, short runs of those that could win, long runs of the best.

candidates --bounds--> race, 300 requests a run --> contenders --800 requests, 4 seeds--> ranked
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from plait.planner.aim import Aim
from plait.planner.candidate import Candidate, Part, candidates, elastic_candidates, low_affinity
from plait.planner.fluid import ATTAINMENT, Fluid
from plait.planner.placed import placed
from plait.planner.plans import Plan, Plans
from plait.planner.probe import Probe, Trial, tried
from plait.planner.published import Independent, Map
from plait.planner.race import Entry, Fate, Race, entry
from plait.sim.scenario import Scenario
from plait.spec.cluster import Placement, Role
from plait.spec.errors import UserError
from plait.spec.slo import Slo
from plait.workload.trace import TraceRow

NS = 1e9
EVEN = 100
"""Long runs have multiples of so many requests: candidates of about one size serve the same."""
Show = Callable[[str, Sequence[Entry]], None]


class Algorithm(StrEnum):
    """Which candidates there are."""

    JOINT = "joint"
    """All: n : m instances of any plans, and the policies below."""
    HIGH = "high"
    """DistServe's algorithm 1: the best plan of each phase by itself."""
    LOW = "low"
    """DistServe's algorithm 2: pairs whose stages lie pairwise on the same nodes."""


class Policy(StrEnum):
    """Kinds of candidates; `auto` is all of them."""

    AUTO = "auto"
    COLOCATED = "colocated"
    DISAGGREGATED = "disaggregated"
    HYBRID = "hybrid"
    ELASTIC = "elastic"
    """One elastic pool."""
    POOLS = "pools"
    """Elastic prefill and decode instances apart."""


@dataclass(frozen=True, slots=True)
class SearchConfig:
    """How much is tried."""

    algorithm: Algorithm = Algorithm.JOINT
    policy: Policy = Policy.AUTO
    elastic: bool = False
    """Elastic groups are tried too, by `auto`."""
    most_devices: int = 16
    """Of a candidate; a plan of more devices is tried alone."""
    most_count: int = 4
    """Instances of a role in a candidate."""
    probe_requests: int = 300
    """Of a run of the race."""
    finalists: int = 3
    requests: int = 800
    """Of a run of a finalist, at least: more where many are served at a time."""
    most_requests: int = 2000
    """Of any run."""
    seeds: int = 4
    """Sequences of requests that a finalist serves."""
    runs: int = 8
    """Rates that are tried of a finalist with one sequence."""
    seed: int = 0
    lengths: int = 2000
    """Requests of the trace, evenly picked, of which lengths are drawn."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was found."""

    entries: tuple[Entry, ...]
    """Finalists, best first."""
    refused: Mapping[Plan, str]
    """Plans that cannot be used, and why."""
    fates: Mapping[Fate, int]
    """How many candidates came how far."""
    failed: Mapping[Candidate, str]
    """Those that could not be evaluated, and why."""
    rate_hz: float
    hopeless: tuple[str, ...] = ()
    """Kinds of which no candidate meets the objectives even when it serves one request at a time."""

    @property
    def best(self) -> Entry:
        """The winner."""
        return self.entries[0]

    def reason(self) -> str:
        """Why the first is first, in words."""
        best = self.best
        said = (
            f"{best.candidate} bears {best.per_device:.2f} requests/s a device, so {best.copies} of it "
            f"({best.devices} devices) carry {self.rate_hz:g} requests/s."
        )
        others = [each for each in self.entries[1:] if each.candidate.kind != best.candidate.kind]
        for other in {each.candidate.kind: each for each in reversed(others)}.values():
            said += f" The best {other.candidate.kind} one tried, {other.candidate}, bears "
            if not other.goodput_hz:
                said += "nothing that meets the objectives."
                continue
            sure = "overlap" if _overlap(best, other) else "are apart"
            said += f"{other.per_device:.2f} a device and needs {other.devices}; their intervals {sure}."
        if self.hopeless:
            kinds = " or ".join(self.hopeless)
            said += f" No {kinds} one meets the objectives even with one request at a time."
        return said


def _hopeless(fates: Mapping[Candidate, Fate]) -> tuple[str, ...]:
    """Kinds whose candidates all miss the objectives when idle, but for those that cannot be had."""
    of_kind: dict[str, set[Fate]] = {}
    for candidate, fate in fates.items():
        of_kind.setdefault(candidate.kind, set()).add(fate)
    absent = {Fate.UNUSABLE, Fate.UNPLACED}
    return tuple(kind for kind, found in of_kind.items() if found - absent == {Fate.IDLE})


def _overlap(one: Entry, other: Entry) -> bool:
    a, b = one.candidate.devices, other.candidate.devices
    return one.low_hz / a <= other.high_hz / b and other.low_hz / b <= one.high_hz / a


@dataclass(slots=True)
class Search:
    """Looks for the placement that needs the fewest devices at a rate."""

    plans: Plans
    trace: Sequence[TraceRow]
    slo: Slo
    rate_hz: float
    config: SearchConfig = field(default_factory=SearchConfig)
    map: Map = map
    """Runs trials; that of a pool of processes uses all cores."""
    aim: Aim = field(init=False)
    probe: Probe = field(init=False)
    fluid: Fluid = field(init=False)

    def __post_init__(self) -> None:
        """Raises UserError: the rate is none, or the objectives are."""
        if not (self.rate_hz > 0 and math.isfinite(self.rate_hz)):
            raise UserError(f"the rate is {self.rate_hz} requests/s; it must be above 0", "rate")
        if min(self.slo.ttft_ns, self.slo.tpot_ns) <= 0:
            raise UserError("objectives must be above 0, such as ttft=200ms,tpot=50ms", "slo")
        self.aim = Aim(self.rate_hz)
        every = max(1, len(self.trace) // self.config.lengths)
        self.probe = Probe(self.trace[::every][: self.config.lengths], self.slo)
        seeds = self._seeds()
        most = max(self.config.requests, self.config.most_requests)
        self.fluid = Fluid(self.plans, [self.probe.requests(seed, most) for seed in seeds], self.slo)

    def run(self, show: Show = lambda stage, entries: None) -> Outcome:
        """Search; `show` is given the provisional table and then the finalists.

        Raises:
            UserError: nothing fits, nothing meets the objectives, or the cluster is too small; says what
                would be feasible.
        """
        longest = self._longest
        usable = self._usable(longest)
        fates, able = self._placeable(usable)
        bound_hz = {each: self.bound_hz(each) for each in able}
        fates |= {each: Fate.IDLE for each in able if not bound_hz[each]}
        bound_hz = {each: hz for each, hz in bound_hz.items() if hz}
        if not bound_hz:
            raise self._infeasible(usable)
        race = self._race()
        chosen = self._chosen(race, usable, bound_hz, show)
        final = self._final(race, chosen)
        show("final", final)
        self._check(final)
        fates |= race.fates | {each.candidate: Fate.FINALIST for each in final}
        refused, _ = self.plans.of(longest)
        counts = Counter(fates.values())
        ordered = {fate: counts[fate] for fate in Fate if counts[fate]}
        hopeless = _hopeless(fates)
        return Outcome(tuple(final), refused, ordered, race.failed, self.rate_hz, hopeless)

    def placement(self, entry: Entry) -> Placement:
        """All copies that the rate needs, on the cluster.

        Raises:
            UserError: the nodes have no room for them.
        """
        return self.scenario(entry.candidate, entry.copies).placement

    def scenario(self, candidate: Candidate, copies: int = 1) -> Scenario:
        """Copies of a candidate on the cluster.

        Raises:
            UserError: the nodes have no room for them.
        """
        plans = self.plans
        placement = candidate.place(plans.cluster, copies, self.fluid.step_tokens)
        if placement is None:
            raise UserError(
                f"{copies} x ({candidate}) find no room on {plans.cluster.nodes} nodes", "cluster"
            )
        return placed(placement, plans, slo=self.slo)

    def measured(self, chosen: Sequence[Candidate], near_hz: Sequence[float]) -> list[Entry]:
        """What candidates bear in long runs; `near_hz` is where they are tried first."""
        seeds, probe, runs = self._seeds(), self.probe, self.config.runs
        trials = [
            Trial(probe, self.scenario(each), seed, self.count(each), near, self._most_hz(each), runs)
            for each, near in zip(chosen, near_hz, strict=True)
            for seed in seeds
        ]
        rates = [found.rate_hz for found in self.map(tried, trials)]
        each_rates = [rates[at : at + len(seeds)] for at in range(0, len(rates), len(seeds))]
        return [
            entry(self.aim, each, self.bound_hz(each), found, self.count(each))
            for each, found in zip(chosen, each_rates, strict=True)
        ]

    def count(self, candidate: Candidate) -> int:
        """Requests of a long run of a candidate: many beside those that it serves at a time, or no queue
        would fill."""
        config, demand = self.config, self.fluid.demand
        stay_s = (self.slo.ttft_ns + demand.steps * self.slo.tpot_ns) / NS
        wanted = 2 * min(self.fluid.steady_hz(candidate), 2 * self.rate_hz) * stay_s
        wanted = math.ceil(wanted / EVEN) * EVEN
        return min(max(config.requests, wanted), max(config.requests, config.most_requests))

    def bound_hz(self, candidate: Candidate) -> float:
        """More requests/s than a copy bears in long runs; 0: it meets the objectives not even when idle."""
        return self.fluid.bound_hz(candidate, self.count(candidate))

    def able(self, longest: int) -> list[Candidate]:
        """Candidates that can be placed and that hold a request of `longest` tokens."""
        return self._placeable(self._usable(longest))[1]

    def steady_per_device_hz(self) -> float:
        """More requests/s of a device than any candidate bears in a run without end."""
        longest = max(row.prompt_tokens + row.output_tokens for row in self.trace)
        return max(self.fluid.steady_hz(each) / each.devices for each in self.able(longest))

    # ---- candidates ----------------------------------------------------------------------------

    def _usable(self, longest: int) -> list[Plan]:
        """Plans of instances that hold any request alone; with elastic groups there need not be any."""
        return self.plans.of(longest)[1] if self._grouped else self.plans.check(longest)

    @property
    def _grouped(self) -> bool:
        """Elastic groups are candidates."""
        return self.config.elastic or self.config.policy in (Policy.ELASTIC, Policy.POOLS)

    def _placeable(self, usable: Sequence[Plan]) -> tuple[dict[Candidate, Fate], list[Candidate]]:
        """The fates of candidates that cannot be tried, and the others."""
        config, cluster = self.config, self.plans.cluster
        least = min((plan.devices for plan in usable), default=1)
        most = min(cluster.devices, max(config.most_devices, 2 * least))
        fits = frozenset(usable)
        fates: dict[Candidate, Fate] = {}
        able: list[Candidate] = []
        for each in self._all(most):
            if not self._wanted(each):
                continue
            if not all(self._fits(part, fits) for part in each.parts):
                fates[each] = Fate.UNUSABLE
            elif each.place(cluster, 1, lambda part: 1) is None:
                fates[each] = Fate.UNPLACED
            else:
                able.append(each)
        if not able:
            raise UserError(
                f"no {config.policy.value} candidate of algorithm {config.algorithm.value} fits on "
                f"{cluster.devices} devices: allow another one, or more devices",
                "policy",
            )
        return fates, able

    def _all(self, most: int) -> Iterator[Candidate]:
        every, config, cluster = self.plans.every(), self.config, self.plans.cluster
        yield from candidates(every, most, config.most_count)
        if self._grouped:  # on one node: links between nodes are not counted in the times of groups
            yield from elastic_candidates(every, min(most, cluster.devices_per_node), config.most_count)

    def _fits(self, part: Part, fits: Collection[Plan]) -> bool:
        """Its instances hold any request, alone or, if they are elastic, together."""
        if not part.role.elastic:
            return part.plan in fits
        return not self.plans.refusal_of_groups(part.plan, part.count, self._longest)

    @property
    def _longest(self) -> int:
        return max(row.prompt_tokens + row.output_tokens for row in self.trace)

    def _wanted(self, candidate: Candidate) -> bool:
        config = self.config
        if config.policy is not Policy.AUTO and candidate.kind != config.policy.value:
            return False
        if config.algorithm is Algorithm.LOW:
            return low_affinity(candidate, self.plans.cluster.devices_per_node)
        return config.algorithm is not Algorithm.HIGH or candidate.kind == "disaggregated"

    def _seeds(self) -> range:
        """Of the sequences of requests that finalists serve."""
        return range(self.config.seed + 1, self.config.seed + 1 + self.config.seeds)

    def _most_hz(self, candidate: Candidate) -> float:
        return max(2 * self.fluid.steady_hz(candidate), 1e-3)

    # ---- race and finalists --------------------------------------------------------------------

    def _race(self) -> Race:
        share = self.config.probe_requests / self.config.requests

        def count(candidate: Candidate) -> int:
            return round(share * self.count(candidate))

        def measure(candidate: Candidate, near_hz: float) -> Entry:
            return self.measured([candidate], [near_hz])[0]

        scenario, seed = self.scenario, self.config.seed
        return Race(self.aim, self.fluid, self.probe, scenario, measure, self.map, count, seed)

    def _chosen(
        self, race: Race, usable: Sequence[Plan], bound_hz: Mapping[Candidate, float], show: Show
    ) -> dict[Candidate, float]:
        """Candidates to be measured, and what they bore: the best, and the best of each other kind, so that
        the table compares kinds."""
        if self.config.algorithm is Algorithm.HIGH:
            only = self._independent(usable).best()
            return {only: 0.5 * self.fluid.steady_hz(only)}
        contenders = race.run(bound_hz, show)
        chosen = {each.candidate: each.goodput_hz for each in contenders[: self.config.finalists]}
        for kind in ("colocated", "disaggregated", "hybrid", "elastic", "pools"):
            of_kind = [each for each in contenders if each.candidate.kind == kind][:1]
            chosen |= {each.candidate: each.goodput_hz for each in of_kind}
            if not of_kind and not any(each.kind == kind for each in race.measured):
                rest = [each for each in bound_hz if each.kind == kind and each not in race.failed]
                rest.sort(key=lambda each: (self.aim.score(each, bound_hz[each]), each))
                if leader := race.leader(rest[: race.width]):
                    chosen[leader[0]] = leader[1]
        if hopeful := race.hopeful():
            chosen[hopeful[0]] = hopeful[1]
        # Where none bore anything in a short run, long ones of those with the best bounds decide.
        best = sorted(bound_hz, key=lambda each: (self.aim.score(each, bound_hz[each]), each))
        return chosen or {each: bound_hz[each] / 2 for each in best[: self.config.finalists]}

    def _independent(self, usable: Sequence[Plan]) -> Independent:
        config = self.config
        fit = [plan for plan in usable if 2 * plan.devices <= max(config.most_devices, 2 * usable[0].devices)]
        sizes = max(config.most_devices, 2 * usable[0].devices), config.most_count
        return Independent(self.fluid, self.probe, fit, *sizes, self.map, config.seed, config.probe_requests)

    def _final(self, race: Race, chosen: Mapping[Candidate, float]) -> list[Entry]:
        """Long runs of those that had none; all that had, best first."""
        left = {each: near for each, near in chosen.items() if each not in race.measured}
        found = [*race.measured.values(), *self.measured(list(left), list(left.values()))]
        return sorted(
            found, key=lambda each: (self.aim.score(each.candidate, each.goodput_hz), each.candidate)
        )

    # ---- what cannot be ------------------------------------------------------------------------

    def _infeasible(self, usable: Sequence[Plan]) -> UserError:
        able = usable or self.plans.check(1)
        idle = [(plan, *self.fluid.idle_ns(Part(Role.PREFILL, plan))) for plan in able]
        first, again = min(idle, key=lambda each: each[1]), min(idle, key=lambda each: each[2])
        return UserError(
            f"no placement meets the objectives for {ATTAINMENT:.0%} of the requests, even one by "
            f"one. At best: ttft={math.ceil(first[1] / 1e6)}ms ({first[0]}), "
            f"tpot={math.ceil(again[2] / 1e5) / 10:.1f}ms ({again[0]})",
            "slo",
        )

    def _check(self, final: Sequence[Entry]) -> None:
        """The winner must fit the cluster."""
        best, cluster = final[0], self.plans.cluster
        if best.goodput_hz <= 0:
            raise UserError(
                "no candidate that was tried meets the objectives under load: relax ttft or tpot", "slo"
            )
        if best.devices > cluster.devices:
            room = max(final, key=lambda each: cluster.devices // each.candidate.devices * each.goodput_hz)
            most_hz = cluster.devices // room.candidate.devices * room.goodput_hz
            raise UserError(
                f"{self.rate_hz:g} requests/s need {best.devices} devices, {best.copies} x {best.candidate}; "
                f"{cluster.devices} carry at most {most_hz:.2f} requests/s",
                "rate",
            )
