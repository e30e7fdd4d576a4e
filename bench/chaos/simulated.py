"""Runs in virtual time under faults, in all kinds of placements, held against the same requests without."""

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))

from tests.serving.audit import audit

from chaos.beset import MS, Beset, JumpingClock
from chaos.verdict import Verdict
from plait.cost.by_group import ByGroup
from plait.cost.cost import ByInstance, Cost
from plait.cost.fitted import Fitted
from plait.cost.pipeline import Pipeline
from plait.serving.admission import AdmissionConfig
from plait.serving.batcher import BatcherConfig
from plait.serving.elasticity import ElasticConfig
from plait.serving.handover import HandoverConfig
from plait.serving.manager import GlobalManager, ManagerConfig
from plait.sim.copies import Copies, Network
from plait.sim.workers import Arrival, VirtualWorkers
from plait.sim.world import World
from plait.spec.cluster import Instance, Link, Placement, Role
from plait.spec.command import Command, End, Token
from plait.spec.event import Aborted, Arrived, Event, WorkerUp
from plait.spec.request import EndReason, Request
from plait.workload.profile import Profile
from plait.workload.trace import TraceRow

SLOTS, PAGE, REQUESTS = 2048, 16, 200
PAUSE_NS = 150 * MS
"""Mean time between two faults; a third of it under overload, where all takes a third of the time."""
ALONE = Fitted(3e6, 5e4, 4.0, 20.0, 6e6, 300.0, 9e4)
"""A prompt of 200 tokens takes 13 ms, a decode step 6 ms."""
GROUPS = ByGroup({n: Fitted(3e6, 5e4 / n, 4.0 / n, 20.0, 6e6, 300.0, 9e4) for n in (1, 2, 3, 4)})
STAGED = Pipeline(ALONE, 2, 4, 8192.0, Link(10e9, 20_000))
NETWORK = Network(16_384, Link(2e9, 20_000), Link(1e9, 30_000), layers=4)
WHOLE = replace(NETWORK, layers=1)
"""Where moves wait for what they copy."""
M, P, D, E = Role.MIXED, Role.PREFILL, Role.DECODE, Role.ELASTIC
F, G = Role.ELASTIC_PREFILL, Role.ELASTIC_DECODE
EXACT = (EndReason.STOP, EndReason.LENGTH)
ERRORS = (EndReason.FAILED, EndReason.QUEUE_FULL, EndReason.TOO_LONG)
"""They need no cause of the request's own: lost too often, a full queue, too few instances up for it."""


@dataclass(frozen=True)
class Case:
    """A deployment."""

    name: str
    roles: tuple[Role, ...]
    rate_hz: float
    """Of requests that it can bear; three times as many overload it."""
    cost: Cost = ALONE
    tp: int = 1
    pp: int = 1
    overlap: bool = False
    longest: int = 0
    """Tokens of a few prompts that need several instances; 0: there are none."""

    @property
    def placement(self) -> Placement:
        """Its instances."""
        return Placement(
            tuple(Instance(i, role, self.tp, self.pp if i == 0 else 1) for i, role in enumerate(self.roles))
        )

    def config(self, *, bounded: bool) -> ManagerConfig:
        """`bounded`: the queue is."""
        return ManagerConfig(
            page=PAGE,
            admission=AdmissionConfig(max_queue=40 if bounded else 10**6, max_rows=32, output_share=0.3),
            batcher=BatcherConfig(step_tokens=256),
            handover=HandoverConfig(overlap=self.overlap),
            elastic=ElasticConfig(GROUPS.widths, chunk_ns=20e6, move_token_ns=100.0),
            placement=self.placement,
        )


CASES = (
    Case("mixed", (M, M, M), 60.0),
    Case("prefill and decode", (P, P, D, D), 50.0),
    Case("prefill and decode, moves follow their steps", (P, D, D, M), 40.0, overlap=True),
    Case("tp and pp", (P, D, M), 40.0, cost=ByInstance({0: STAGED, 1: ALONE, 2: ALONE}), tp=2, pp=2),
    Case("elastic", (E, E, E, E), 40.0, cost=GROUPS, longest=3000),
    Case("elastic pools", (F, F, G, G), 30.0, cost=GROUPS, longest=2500),
    Case("elastic beside mixed", (E, E, E, M), 40.0, cost=GROUPS, longest=2500),
)


@dataclass
class Seen:
    """What callers get in one run. An observer."""

    arrived_ns: dict[int, int] = field(default_factory=dict)
    drawn: dict[int, int] = field(default_factory=dict)
    ends: dict[int, tuple[int, End]] = field(default_factory=dict)
    """Request -> when it ended, and how."""
    left: set[int] = field(default_factory=set)
    """Requests whose callers left."""
    wrong: list[str] = field(default_factory=list)

    def see(self, now_ns: int, event: Event, commands: Sequence[Command]) -> None:
        """See `Observer`."""
        if isinstance(event, Arrived):
            self.arrived_ns[event.request.id] = now_ns
        elif isinstance(event, Aborted):
            self.left.add(event.request)
        for command in commands:
            if isinstance(command, Token):
                self.wrong += [
                    f"{each}: a token after its end" for each in command.requests if each in self.ends
                ]
                for request in command.requests:
                    self.drawn[request] = self.drawn.get(request, 0) + 1
            elif isinstance(command, End):
                if command.request in self.ends:
                    self.wrong.append(f"{command.request}: a second end")
                self.ends[command.request] = now_ns, command


def arrivals_of(case: Case, rate_hz: float, seed: int) -> list[Arrival]:
    """Poisson arrivals; some have a deadline, some share a prefix, a few are long."""
    rng = random.Random(seed)
    rows = Profile(
        "poisson", rate_hz=rate_hz, count=REQUESTS, prompt="20-400", output="1-60", seed=seed
    ).rows()
    found = []
    for number, row in enumerate(rows):
        if case.longest and number % 30 == 7:
            row = TraceRow(row.arrival_ns, case.longest, row.output_tokens)
        deadline_ns = row.arrival_ns + rng.randint(100, 3000) * MS if number % 10 == 3 else None
        family = rng.randrange(4)
        hashes = tuple(hash((family, block)) for block in range(min(row.prompt_tokens, 96) // PAGE))
        most = row.output_tokens + (number % 3 and rng.randrange(20))  # some stop before their limit
        request = Request(number, row.prompt_tokens, most, hashes, deadline_ns)
        found.append(Arrival(row.arrival_ns, request, row.output_tokens))
    return found


def hands_of(case: Case, arrivals: list[Arrival]) -> VirtualWorkers:
    """Instances that never fail."""
    return VirtualWorkers(case.cost, arrivals, Copies(NETWORK if case.overlap else WHOLE, {}))


def inputs_of(case: Case, arrivals: list[Arrival]) -> list[tuple[int, Event]]:
    """All instances are up before the first request comes."""
    ups = [(0, WorkerUp(i, 0, SLOTS)) for i in range(len(case.roles))]
    return [*ups, *((each.at_ns, Arrived(each.request)) for each in arrivals)]


def undisturbed(case: Case, arrivals: list[Arrival]) -> dict[int, End]:
    """How every request ends when nothing fails, nobody is refused and nothing has a deadline."""
    free = [replace(each, request=replace(each.request, deadline_ns=None)) for each in arrivals]
    seen = Seen()
    core = GlobalManager(case.config(bounded=False))
    World(core, hands_of(case, free), [seen.see]).run(inputs_of(case, free))
    ends = {request: end for request, (_, end) in seen.ends.items()}
    assert len(ends) == len(free), "requests without an end, and without a fault"
    assert all(end.reason in EXACT for end in ends.values()), "an error without a fault"
    return ends


def one_run(case: Case, rate_hz: float, seed: int, pause_ns: int) -> Verdict:
    """Serve under faults, `pause_ns` apart in the mean; every call of the core is audited."""
    arrivals = arrivals_of(case, rate_hz, seed)
    expected, core, seen = undisturbed(case, arrivals), GlobalManager(case.config(bounded=True)), Seen()
    clock = JumpingClock(core)

    def settled() -> bool:
        return not any(seat.retiring for seat in core.seats.values())

    roles = dict(enumerate(case.roles))
    beset = Beset(hands_of(case, arrivals), clock, roles, SLOTS, random.Random(seed), pause_ns, settled)
    World(clock, beset, [seen.see, beset.see, lambda *_: audit(core)]).run(inputs_of(case, arrivals))
    core.ledger.check()
    found = Verdict(beset.done, recomputed=core.counts.recomputations + core.counts.move_retries)
    found.leaked = sum(core.ledger.used(i) for i in core.seats)
    found.wrong = seen.wrong + ([] if core.quiet else ["something is left in flight"])
    for request in expected:
        judge(found, seen, arrivals[request].request, expected[request])
    found.wrong = [f"{case.name}, {rate_hz:g}/s, seed {seed}: {each}" for each in found.wrong]
    return found


def judge(found: Verdict, seen: Seen, request: Request, expected: End) -> None:
    """A request ends once: as without faults, or with an error that has a cause, and no more tokens."""
    if request.id not in seen.ends:
        found.wrong.append(f"{request.id}: no end")
        return
    at_ns, end = seen.ends[request.id]
    found.ends[end.reason.value] += 1
    found.longest_s = max(found.longest_s, (at_ns - seen.arrived_ns[request.id]) / 1e9)
    causes = {EndReason.ABORTED: request.id in seen.left, EndReason.DEADLINE: request.deadline_ns is not None}
    if end.reason in EXACT:
        right = (end.reason, end.tokens) == (expected.reason, expected.tokens)
    else:
        right = end.tokens <= expected.tokens and causes.get(end.reason, end.reason in ERRORS)
    if not right or end.tokens != seen.drawn.get(request.id, 0):
        found.wrong.append(f"{request.id}: {end}, but without faults {expected}")


def simulated(faults: int, seed: int) -> Verdict:
    """Runs over all cases, at a load that they bear and at three times as much, until there are so many
    faults."""
    found = Verdict()
    while found.faults.total() < faults:
        for case in CASES:
            for times in (1, 3):
                found.add(one_run(case, case.rate_hz * times, seed, PAUSE_NS // times))
        seed += 1
    return found
