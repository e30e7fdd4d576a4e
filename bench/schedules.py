"""Fused pipeline schedules against the published search: latency, memory, time to find them.

The 12 instances of RLHFuse's released search (an Actor and one or two Critics on 8 or 16 ranks) with what
it reached on 768 processes in 20 s to 83 minutes. Ours has 300 s and two threads for each; what it had
after 60 s is read from the same run; a search ends when its schedule is at the bound and as small as the
published one. Peak memory is that of the same schedule. Then the same with backwards split into inputs and
weights, and three models on 64 ranks. Every schedule is checked by schedule_verifier.py, which shares no
code with the search. `--quick` gives some seconds to instances that need few.
"""

from dataclasses import dataclass

import schedule_verifier
from claim import Claim, arguments, at_least, at_most, finish, together

from plait.search.pipelines.find import ScheduleSearch, Searched, searched
from plait.search.pipelines.fuse import Share, even, fused, split_backward
from plait.spec.schedule import PipelineProblem

THREADS = 2
SECONDS, EARLY_S, SPLIT_S, LARGE_S = 300.0, 60.0, 100.0, 100.0
QUICK_S = 8.0
QUICK = (2, 3, 4, 5)


@dataclass(frozen=True)
class Published:
    """An instance and what the published search reached; stages, micro-batches, forwards, sizes of Actor and
    Critic."""

    number: int
    stages: tuple[int, int]
    micro_batches: tuple[int, int]
    forward_s: tuple[float, float]
    kept_bytes: tuple[float, float]
    bound_s: float
    makespan_s: float
    peak_bytes: float

    @property
    def problem(self) -> PipelineProblem:
        """In opposite directions; the Critic's pipelines fill the Actor's ranks."""
        columns = zip(self.stages, self.micro_batches, self.forward_s, self.kept_bytes, strict=True)
        actor, critic = (even(*column) for column in columns)
        return fused([Share(actor), Share(critic, reverse=True)])


_33B, _33B_13B = ((8, 4), (5, 4), (1.95, 2.0)), ((8, 8), (5, 2), (1.95, 1.0))
_65B, _65B_33B = ((16, 8), (2, 2), (1.64, 2.0)), ((16, 16), (2, 1), (1.64, 1.0))
TABLE = (
    (_33B, (32, 16), 708, 708, 19.70),
    (_33B, (16, 8), 372, 372, 15.75),
    (_33B, (8, 4), 225, 225, 15.60),
    (_33B_13B, (32, 32), 702, 702, 20.50),
    (_33B_13B, (16, 16), 366, 366, 18.55),
    (_33B_13B, (8, 8), 225, 225, 15.60),
    (_65B, (64, 32), 618, 618, 39.72),
    (_65B, (32, 16), 330, 330, 29.88),
    (_65B, (16, 8), 186, 186, 26.24),
    (_65B_33B, (64, 64), 606, 613, 38.72),
    (_65B_33B, (32, 32), 318, 318, 32.16),
    (_65B_33B, (16, 16), 186, 186, 26.24),
)
INSTANCES = tuple(
    Published(number, shape[0], counts, shape[1], shape[2], bound, makespan, peak)
    for number, (shape, counts, bound, makespan, peak) in enumerate(TABLE)
)
SPLIT_EQUAL, SPLIT_TWICE = (2, 5, 8, 11), (1, 4, 7, 10)
"""Instances with as many micro-batches as ranks, and with twice as many."""
SPLIT_SLACK = 0.01
"""Of the bound: what split schedules may be longer to be smaller."""
SPLIT_BARS_S = {1: 348.0, 4: 346.0, 7: 302.0, 10: 298.0}
"""The most over ranks of earliest start plus work."""


def verified(problem: PipelineProblem, found: Searched) -> tuple[float, float]:
    """Makespan and peak as the independent verifier finds them."""
    models = [
        schedule_verifier.Model(p.micro_batches, p.ranks, p.forward_s, p.backward_s, p.weight_s, p.kept_bytes)
        for p in problem.models
    ]
    rows = [
        [(a.model, a.stage, a.kind.value, a.micro_batch, at) for a, at in zip(row, starts, strict=True)]
        for row, starts in zip(found.schedule.rows, found.timing.starts_s, strict=True)
    ]
    return schedule_verifier.verify(models, rows)


def search(
    problem: PipelineProblem, seconds: float, seed: int, enough: float = 0.0, slack: float = 0.0
) -> Searched:
    """One search of the bench."""
    config = ScheduleSearch(seconds=seconds, threads=THREADS, seed=seed, enough_bytes=enough, slack=slack)
    return searched(problem, config)


def by(found: Searched, seconds: float) -> float:
    """The makespan that the search had after so long."""
    return min((step[1] for step in found.steps if step[0] <= seconds), default=float("inf"))


def fused_parts(numbers: tuple[int, ...], seconds: float, seed: int) -> tuple[list[Claim], dict[int, float]]:
    """The claims about published instances, and the peak of each one's schedule."""
    shorter = bound = early = near = within = smaller = slightly = 0
    peaks = {}
    for number in numbers:
        case = INSTANCES[number]
        found = search(case.problem, seconds, seed, case.peak_bytes)
        makespan, peak = verified(case.problem, found)
        peaks[number] = peak
        ratio = peak / case.peak_bytes
        shorter += makespan <= case.makespan_s
        bound += makespan <= case.bound_s
        early += by(found, EARLY_S) <= case.bound_s
        near += by(found, EARLY_S) <= 1.02 * case.bound_s
        smaller += ratio <= 1 + 1e-6
        slightly += ratio <= 1.10
        within += abs(makespan - found.timing.makespan_s) < 1e-6
        show(
            f"{number}: published {case.makespan_s:g} s, {case.peak_bytes:g}; {ratio:.3f} of its memory",
            found,
        )
    count, full = len(numbers), len(numbers) == len(INSTANCES)
    parts = [
        at_least(f"of {count} instances, as short as published (exp9: 613)", shorter, count),
        at_least("at the lower bound", bound, 11 if full else count),
        at_least(f"at the lower bound within {EARLY_S:g} s", early, 8 if full else count),
        at_least(f"within 2 % of it within {EARLY_S:g} s", near, count),
        at_least("of these schedules, as small as published", smaller, 9 if full else count - 1),
        at_least("at most 1.10 of its memory", slightly, count),
        at_least("found right by the independent verifier", within, count),
    ]
    return parts, peaks


def split_parts(numbers: tuple[int, ...], seconds: float, seed: int, peaks: dict[int, float]) -> list[Claim]:
    """The claims about schedules whose backwards are split, against the unsplit ones of the same
    instances."""
    parts, most = [], 0.0
    for number in numbers:
        case = INSTANCES[number]
        problem = split_backward(case.problem)
        found = search(problem, seconds, seed, 1.2 * peaks[number], SPLIT_SLACK)
        makespan, peak = verified(problem, found)
        most = max(most, peak / peaks[number])
        show(f"{number} split: unsplit {case.bound_s:g} s, {peak / peaks[number]:.3f} of its memory", found)
        if number in SPLIT_EQUAL:
            saved = 100 * (1 - makespan / case.bound_s)
            parts.append(at_least(f"exp{number} split: shorter by, in %", saved, 8.0))
        else:
            bar = SPLIT_BARS_S[number]
            parts.append(
                at_most(f"exp{number} split: over start plus work ({bar:g} s)", makespan / bar, 1.015)
            )
    return [*parts, at_most("split: memory over that of the unsplit schedule, the most", most, 1.25)]


def three_models(ranks: int, micro_batches: int) -> PipelineProblem:
    """An Actor, a Critic of the same depth and a third model of half of it, each other one reversed."""
    actor, critic = even(ranks, micro_batches, 4.0, 2.0), even(ranks, micro_batches, 2.0, 1.0)
    third = even(ranks // 2, micro_batches // 2, 2.0, 1.0)
    return fused([Share(actor), Share(critic, reverse=True), Share(third)])


def large_part(ranks: int, micro_batches: int, seconds: float, seed: int) -> Claim:
    """The claim about three models."""
    problem = three_models(ranks, micro_batches)
    found = search(problem, seconds, seed)
    makespan, _ = verified(problem, found)
    show(f"three models, {ranks} ranks, {micro_batches} micro-batches", found)
    return at_most(
        f"N = {ranks}, M = {micro_batches}, three models: over the bound", makespan / found.bound_s, 1.03
    )


def show(title: str, found: Searched) -> None:
    """A line for each schedule, as it is found."""
    print(f"exp{title}: {found} at {found.steps[-1][0] if found.steps else 0:.1f} s", flush=True)


def main() -> None:
    """See the module."""
    options = arguments(__doc__)
    quick = options.quick
    seconds = QUICK_S if quick else SECONDS
    parts, peaks = fused_parts(QUICK if quick else tuple(range(len(INSTANCES))), seconds, options.seed)
    split = (5, 4) if quick else (*SPLIT_EQUAL, *SPLIT_TWICE)
    parts += split_parts(split, QUICK_S if quick else SPLIT_S, options.seed, peaks)
    large = (16, 64, QUICK_S) if quick else (64, 256, LARGE_S)
    parts.append(large_part(*large, options.seed))
    finish("schedules", together(f"fused pipeline schedules, {THREADS} threads", parts), options)


if __name__ == "__main__":
    main()
