"""`Race`: best-first branch and bound over candidates.

Candidates are tried in the order of their upper bounds, some at a time (a heat). Each must first bear what
the lower confidence limit of the best one measured so far asks of it, in one short run with the same requests
(a short run errs to the high side: its queues are not full); those that do are bisected. A heat's best is
measured in long runs with several seeds. When the best bound left falls below the limit, nothing that is left
could win.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from plait.planner.aim import NEVER, Aim, Score
from plait.planner.candidate import Candidate
from plait.planner.fluid import Fluid
from plait.planner.probe import Probe, Trial, tried
from plait.planner.published import Map
from plait.sim.scenario import Scenario

T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36}
"""Student's t for a 95 % interval of so many values."""


class Fate(StrEnum):
    """How far a candidate came. Every one has exactly one."""

    UNUSABLE = "have a plan that cannot be used: memory, heads, stages or no measurements"
    UNPLACED = "find no place on the nodes"
    IDLE = "miss the objectives even when idle"
    BOUND = "bound below the winner"
    PROBED = "probed: bear less than the winner"
    CONTENDER = "probed: as good as the winner within noise, not measured further"
    FINALIST = "finalists"
    FAILED = "could not be evaluated"


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the table: one candidate and the rate that one copy of it bears."""

    candidate: Candidate
    bound_hz: float
    goodput_hz: float
    low_hz: float
    """The 95 % interval of `goodput_hz` over seeds; both are equal to it where there is one seed only."""
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


def entry(aim: Aim, candidate: Candidate, bound_hz: float, rates_hz: Sequence[float], requests: int) -> Entry:
    """Sum up what was found with several seeds, each in `requests` requests."""
    mean, half = float(np.mean(rates_hz)), 0.0
    if len(rates_hz) > 1:
        half = T_95.get(len(rates_hz), 2.3) * float(np.std(rates_hz, ddof=1)) / len(rates_hz) ** 0.5
    low, high = max(0.0, mean - half), mean + half
    return Entry(candidate, bound_hz, mean, low, high, requests * len(rates_hz), aim.copies(mean))


@dataclass(slots=True)
class Race:
    """Finds those that may be the best. `fates` and `failed` fill as it runs."""

    aim: Aim
    fluid: Fluid
    probe: Probe
    scenario: Callable[[Candidate], Scenario]
    measure: Callable[[Candidate, float], Entry]
    """Long runs of a candidate that bears so much in a short one."""
    map: Map
    count: Callable[[Candidate], int]
    """Requests of a short run of a candidate."""
    seed: int = 0
    width: int = 8
    """Candidates of a heat, whatever the number of processes: so the outcome is the same."""
    fates: dict[Candidate, Fate] = field(default_factory=dict)
    failed: dict[Candidate, str] = field(default_factory=dict)
    measured: dict[Candidate, Entry] = field(default_factory=dict)
    """What long runs say of those that led a heat."""
    _short_hz: dict[Candidate, float] = field(default_factory=dict)
    """What contenders bore in a short run."""

    def run(
        self, bound_hz: Mapping[Candidate, float], show: Callable[[str, Sequence[Entry]], None]
    ) -> list[Entry]:
        """Race; those that were not beaten with what they bore in short runs, best first.

        Args:
            bound_hz: upper bounds, above 0.
            show: is given the outcome of the first heat, before anything is measured.
        """
        waiting = sorted(bound_hz, key=lambda each: (self.aim.score(each, bound_hz[each]), each))
        first = True
        while waiting:
            bar = self._bar()
            if bar < self.aim.score(waiting[0], bound_hz[waiting[0]]):
                self.fates |= dict.fromkeys(waiting, Fate.BOUND)
                break
            heat, waiting = waiting[: self.width], waiting[self.width :]
            leader = self._heat([each for each in heat if self._may_win(each, bound_hz[each], bar)], bar)
            if leader is not None and first:
                show("provisional", self._ranked(bound_hz))
                first = False
            if leader is not None and self._promising(leader):
                self.measured[leader] = self.measure(leader, self._short_hz[leader])
        return self._ranked(bound_hz)

    def hopeful(self) -> tuple[Candidate, float] | None:
        """The one that would be the best if its short run erred as much as those of measured ones may have,
        and what it bore."""
        found = self.measured.values()
        most = max((each.high_hz / self._short_hz[each.candidate] for each in found), default=1.0)
        best = min((self.aim.score(each.candidate, each.goodput_hz) for each in found), default=NEVER)
        able = [each for each in self._short_hz if each not in self.measured and self._at(each, most) < best]
        first = min(able, key=lambda each: (self._at(each, most), each), default=None)
        return None if first is None else (first, self._short_hz[first])

    def _at(self, candidate: Candidate, times: float) -> Score:
        return self.aim.score(candidate, times * self._short_hz[candidate])

    def leader(self, some: Sequence[Candidate]) -> tuple[Candidate, float] | None:
        """The best of some candidates in short runs, beaten by others or not, and what it bears."""
        found = self.map(tried, [self._trial(each, NEVER) for each in some])
        able = [(each, one.rate_hz) for each, one in zip(some, found, strict=True) if one.rate_hz]
        return min(able, key=lambda each: (self.aim.score(*each), each[0]), default=None)

    def _bar(self) -> Score:
        """What is certain of the best that was measured."""
        found = self.measured.values()
        return min((self.aim.score(each.candidate, each.low_hz) for each in found), default=NEVER)

    def _promising(self, candidate: Candidate) -> bool:
        """It would be better than all that were measured if its short run errs as theirs did."""
        found = self.measured.values()
        ratios = [each.goodput_hz / self._short_hz[each.candidate] for each in found]
        likely_hz = self._short_hz[candidate] * float(np.mean(ratios)) if ratios else 0.0
        best = min((self.aim.score(each.candidate, each.goodput_hz) for each in found), default=NEVER)
        return best == NEVER or self.aim.score(candidate, likely_hz) < best

    def _may_win(self, candidate: Candidate, bound_hz: float, bar: Score) -> bool:
        able = self.aim.score(candidate, bound_hz) <= bar
        if not able:
            self.fates[candidate] = Fate.BOUND
        return able

    def _heat(self, heat: Sequence[Candidate], bar: Score) -> Candidate | None:
        """Try some; the best of those that bear what `bar` asks."""
        for candidate, found in zip(
            heat, self.map(tried, [self._trial(each, bar) for each in heat]), strict=True
        ):
            if found.reason:
                self.failed[candidate], self.fates[candidate] = found.reason, Fate.FAILED
            elif found.rate_hz:
                self._short_hz[candidate], self.fates[candidate] = found.rate_hz, Fate.CONTENDER
            else:
                self.fates[candidate] = Fate.PROBED
        return min((each for each in heat if each in self._short_hz), key=self._score, default=None)

    def _trial(self, candidate: Candidate, bar: Score) -> Trial:
        needed_hz, steady_hz = self.aim.needed_hz(candidate, bar), self.fluid.steady_hz(candidate)
        near_hz = needed_hz or 0.7 * steady_hz
        high_hz = max(2 * steady_hz, near_hz)
        scenario, count = self.scenario(candidate), self.count(candidate)
        return Trial(self.probe, scenario, self.seed, count, near_hz, high_hz, 6, challenge=needed_hz > 0)

    def _score(self, candidate: Candidate) -> tuple[Score, Candidate]:
        return self.aim.score(candidate, self._short_hz[candidate]), candidate

    def _ranked(self, bound_hz: Mapping[Candidate, float]) -> list[Entry]:
        """Contenders that the best one's limit did not leave behind since."""
        bar, found = self._bar(), []
        for each in sorted(self._short_hz, key=self._score):
            if self._score(each)[0] <= bar:
                short_hz = [self._short_hz[each]]
                found.append(entry(self.aim, each, bound_hz[each], short_hz, self.count(each)))
            else:
                self.fates[each] = Fate.PROBED
        return found
