"""`search`: bounds for every candidate, short probes for the promising ones, long runs for the best.

candidates --bounds, guesses--> promising --300 requests--> provisional --3,000 requests, seeds--> ranked
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from plait.planner.candidate import Candidate, candidates, kinds
from plait.planner.fluid import Demand, Fluid
from plait.planner.plans import Plan, Plans
from plait.planner.probe import ATTAINMENT, Probe
from plait.spec.cluster import Placement
from plait.spec.errors import UserError
from plait.spec.slo import Slo
from plait.workload.trace import TraceRow

T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36}
"""Student's t for a 95 % interval of so many values."""


@dataclass(frozen=True, slots=True)
class SearchConfig:
    """How much is tried."""

    most_devices: int = 16
    """Of a candidate; a plan of more devices is tried alone."""
    overall: int = 4
    """Candidates that are probed, by their guesses."""
    of_kind: int = 1
    """At least so many of each kind."""
    probe_requests: int = 300
    finalists: int = 3
    requests: int = 1000
    """Of a run of a finalist, at least."""
    seeds: int = 3
    runs: int = 6
    """Rates that are tried of one candidate with one sequence of requests."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the table: one candidate and the rate that one copy of it bears."""

    candidate: Candidate
    bound_hz: float
    goodput_hz: float
    low_hz: float
    """The 95 % interval of `goodput_hz` over seeds; a provisional one has none, and both are equal to it."""
    high_hz: float
    requests: int
    """Served at each rate, over all seeds."""
    copies: int
    """That the rate asked for needs."""

    @property
    def per_device(self) -> float:
        """Requests/s of a device."""
        return self.goodput_hz / self.candidate.devices

    @property
    def devices(self) -> int:
        """Of all copies."""
        return self.copies * self.candidate.devices


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was found."""

    entries: tuple[Entry, ...]
    """Best first."""
    refused: dict[Plan, str]
    """Plans that cannot be used, and why."""
    tried: dict[str, int]
    """Candidates with bounds, of each kind."""
    rate_hz: float
    notes: tuple[str, ...] = ()
    """What could not be evaluated, or only in part."""

    def reason(self) -> str:
        """Why the first is first, in words."""
        best = self.entries[0]
        said = (
            f"{best.candidate} bears {best.per_device:.2f} requests/s a device, so {best.copies} of it "
            f"({best.devices} devices) carry {self.rate_hz:g} requests/s."
        )
        others = [each for each in self.entries[1:] if each.candidate.kind != best.candidate.kind]
        for other in {each.candidate.kind: each for each in reversed(others)}.values():
            ratio = best.per_device / other.per_device if other.per_device else math.inf
            sure = "their intervals overlap" if _overlap(best, other) else "their intervals are apart"
            said += f" The best {other.candidate.kind} one tried, {other.candidate}, bears "
            said += (
                f"{other.per_device:.2f} and needs {other.devices} devices ({ratio:.2f} times less a device;"
            )
            said += f" {sure})." if other.goodput_hz else " nothing that meets the objectives)."
        return said


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

    def run(self, progress: Callable[[str, Sequence[Entry]], None] = lambda stage, entries: None) -> Outcome:
        """Search; `progress` is shown the provisional table and then each finalist.

        Raises:
            UserError: nothing fits, nothing meets the objectives, or the cluster is too small; says what
                would be feasible.
        """
        if not self.rate_hz > 0:
            raise UserError(f"the rate is {self.rate_hz} requests/s; it must be above 0", "rate")
        longest = max(row.prompt_tokens + row.output_tokens for row in self.trace)
        usable = self.plans.check(longest)
        fluid = Fluid(self.plans, Demand.of(self.trace), self.slo)
        probe = Probe(fluid, self.trace)
        every = self._candidates(usable)
        able = [each for each in every if fluid.alone(each) >= ATTAINMENT and fluid.bound_hz(each) > 0]
        if not able:
            raise self._infeasible(fluid, usable)
        provisional = self._rank([self._probed(probe, each) for each in self._promising(fluid, able)])
        progress("provisional", provisional)
        final: list[Entry] = []
        for entry in self._finalists(provisional):
            final.append(self._measured(probe, entry))
            progress("finalist", self._rank(final))
        self._check(final)
        names = (
            f"{len(every) - len(able)} of {len(every)} candidates cannot meet the objectives even when idle"
        )
        notes = (names,) if len(able) < len(every) else ()
        refused, _ = self.plans.of(longest)
        return Outcome(tuple(self._rank(final)), refused, kinds(every), self.rate_hz, notes)

    def placement(self, entry: Entry) -> Placement:
        """All copies that the rate needs, on the cluster.

        Raises:
            UserError: the nodes have no room for them.
        """
        fluid = Fluid(self.plans, Demand.of(self.trace), self.slo)
        return Probe(fluid, self.trace).scenario(entry.candidate, entry.copies).placement

    def _candidates(self, usable: Sequence[Plan]) -> list[Candidate]:
        total = self.plans.cluster.devices
        most = min(total, max(self.config.most_devices, 2 * min(plan.devices for plan in usable)))
        fixed = self.plans.cluster
        every = candidates([plan for plan in usable if plan.devices <= most], most)
        return [each for each in every if each.place(fixed, 1, lambda part: 1) is not None]

    def _promising(self, fluid: Fluid, able: Sequence[Candidate]) -> list[Candidate]:
        """The best guesses, and the best of each kind."""
        score = {each: self._score(each, fluid.guess_hz(each)) for each in able}
        ordered = sorted(able, key=lambda each: (score[each], each))
        chosen = ordered[: self.config.overall]
        for kind in ("colocated", "disaggregated", "hybrid"):
            chosen += [each for each in ordered if each.kind == kind][: self.config.of_kind]
        return list(dict.fromkeys(chosen))

    def _score(self, candidate: Candidate, goodput_hz: float) -> tuple[float, float]:
        """Fewest devices for the rate first, then most goodput of a device. Copies share load evenly."""
        if goodput_hz <= 0:
            return (math.inf, math.inf)
        copies = math.ceil(self.rate_hz / goodput_hz)
        return (copies * candidate.devices, -goodput_hz / candidate.devices)

    def _rank(self, entries: Sequence[Entry]) -> list[Entry]:
        return sorted(
            entries, key=lambda each: (self._score(each.candidate, each.goodput_hz), each.candidate)
        )

    def _probed(self, probe: Probe, candidate: Candidate) -> Entry:
        config, fluid = self.config, probe.fluid
        guess_hz = fluid.guess_hz(candidate)
        found = probe.goodput(candidate, config.seed, config.probe_requests, 4, guess_hz)
        return self._entry(candidate, fluid.bound_hz(candidate), [found.rate_hz], found.requests)

    def _finalists(self, provisional: Sequence[Entry]) -> list[Entry]:
        """The best, and the best of each other kind, so that the table compares kinds."""
        chosen = list(provisional[: self.config.finalists])
        for kind in ("colocated", "disaggregated"):
            chosen += [each for each in provisional if each.candidate.kind == kind][:1]
        return list(dict.fromkeys(chosen))

    def _measured(self, probe: Probe, entry: Entry) -> Entry:
        config, candidate = self.config, entry.candidate
        guess_hz = entry.goodput_hz or 0.5 * probe.fluid.guess_hz(candidate)
        count = max(config.requests, probe.settling(guess_hz))
        rates = []
        for seed in range(config.seed + 1, config.seed + 1 + config.seeds):
            rates.append(probe.goodput(candidate, seed, count, config.runs, guess_hz).rate_hz)
            guess_hz = rates[-1] or guess_hz / 2
        return self._entry(candidate, entry.bound_hz, rates, count * config.seeds)

    def _entry(self, candidate: Candidate, bound_hz: float, rates: Sequence[float], requests: int) -> Entry:
        mean = float(np.mean(rates))
        half = 0.0
        if len(rates) > 1:
            half = T_95.get(len(rates), 2.3) * float(np.std(rates, ddof=1)) / math.sqrt(len(rates))
        copies = math.ceil(self.rate_hz / mean) if mean > 0 else 0
        return Entry(candidate, bound_hz, mean, max(0.0, mean - half), mean + half, requests, copies)

    def _infeasible(self, fluid: Fluid, usable: Sequence[Plan]) -> UserError:
        speeds = [(plan, fluid.speeds(plan)) for plan in usable]
        plan, first = min(speeds, key=lambda each: each[1].ttft_ns)
        steady, again = min(speeds, key=lambda each: each[1].tpot_ns)
        return UserError(
            f"no placement meets the objectives for {ATTAINMENT:.0%} of the requests, even one by "
            f"one. At best: ttft={first.ttft_ns / 1e6:.0f}ms ({plan}), "
            f"tpot={again.tpot_ns / 1e6:.1f}ms ({steady})",
            "slo",
        )

    def _check(self, final: Sequence[Entry]) -> None:
        """The winner must fit the cluster."""
        best = self._rank(final)[0]
        cluster = self.plans.cluster
        if best.goodput_hz <= 0:
            raise UserError(
                "no candidate that was tried meets the objectives under load: relax ttft or tpot", "slo"
            )
        room = cluster.devices // best.candidate.devices
        if best.copies > room:
            raise UserError(
                f"{self.rate_hz:g} requests/s need {best.devices} devices, {best.copies} x {best.candidate}; "
                f"{cluster.devices} carry at most {room * best.goodput_hz:.2f} requests/s",
                "rate",
            )
