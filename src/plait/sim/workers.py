"""`VirtualWorkers`: instances whose steps take what a cost says and whose rows end where a trace says."""

from collections.abc import Iterable
from dataclasses import dataclass

from plait.cost.cost import Cost
from plait.cost.reading import ReadCost
from plait.sim.copies import Copies
from plait.sim.lanes import Lanes
from plait.sim.world import World
from plait.spec.command import Score
from plait.spec.errors import UserError
from plait.spec.event import Arrived, Event, Scored, StepDone
from plait.spec.move import Move
from plait.spec.request import Request
from plait.spec.step import Step
from plait.workload.journal import Core, Observer


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request, and what nobody can know when it arrives."""

    at_ns: int
    request: Request
    output_tokens: int
    """Its stop token is the `output_tokens`-th that it draws; from `max_tokens` on there is none."""


class VirtualWorkers:
    """Steps are on `Lanes`, moves are `Copies`.

    A row's length is all that is kept of it, and it is kept as a worker keeps it: a described row says where
    it stands, a row taken again goes on from there. So a request that was preempted and opened anew ends at
    the same token. (Nothing is forgotten when a row is closed: who opens it describes it.)
    """

    def __init__(
        self,
        cost: Cost,
        arrivals: Iterable[Arrival],
        copies: Copies | None = None,
        reading: ReadCost | None = None,
    ) -> None:
        """`copies` may be None where nothing is ever moved, `reading` where nothing is scored."""
        self._lanes = Lanes.of(cost)
        self._copies = copies
        self._reading = reading
        self._scoring: dict[int, int] = {}
        """Score -> its instance, until it is answered."""
        self._flying: dict[int, tuple[tuple[int, ...], int, int]] = {}
        """Step -> its group, its start and its end, until it is answered."""
        self._known: dict[int, int] = {}
        """Request -> tokens of its prompt and output so far."""
        self._full: dict[int, int] = {}
        """Request -> tokens known once it has drawn its stop token, for those that have one."""
        for arrival in arrivals:
            request = arrival.request
            if arrival.output_tokens < request.max_tokens:
                self._full[request.id] = request.prompt_tokens + max(arrival.output_tokens, 1)

    def step_end_ns(self, step: Step, now_ns: int) -> int:
        """See `Hands`."""
        start_ns, end_ns = self._lanes.take(step, now_ns)
        self._flying[step.id] = (step.group, start_ns, end_ns)
        return end_ns

    def wake_ns(self, at_ns: int, now_ns: int) -> int:
        """See `Hands`."""
        return max(at_ns, now_ns)

    def score_end_ns(self, score: Score, now_ns: int) -> int:
        """See `Hands`. The instance has nothing else to do: it is lent, and scores one piece at a time."""
        if self._reading is None:
            raise UserError("samples are to be scored, but nobody reads: give the simulation a cost of it")
        self._scoring[score.id] = score.instance
        return now_ns + self._reading.read_ns(score)

    def answer(self, work: Step | Score) -> Event | None:
        """See `Hands`."""
        if isinstance(work, Score):
            return None if self._scoring.pop(work.id, None) is None else Scored(work.id)
        return self._stepped(work)

    def _stepped(self, step: Step) -> StepDone | None:
        """Each row that draws gets one token a round, until it stops."""
        if self._flying.pop(step.id, None) is None:
            return None
        known, full = self._known, self._full
        tokens, stopped = [], []
        for index, row in enumerate(step.rows):
            length = row.first + row.count + row.draws
            known[row.request] = length
            tokens.append(int(row.draws))
            if row.draws and length == full.get(row.request):
                stopped.append(index)
        first = len(tokens)
        for index, request in enumerate(step.again, start=first):
            length = known[request] = known[request] + 1
            if length == full.get(request):
                stopped.append(index)
        tokens += [1] * len(step.again)
        if step.repeat > 1:
            self._repeat(step, tokens, stopped)
        return StepDone(step.id, tuple(tokens), tuple(stopped))

    def _repeat(self, step: Step, tokens: list[int], stopped: list[int]) -> None:
        """The rounds after the first one, for rows that have not stopped."""
        for index, request in enumerate(step.requests):
            length, more = self._known[request], step.repeat - 1
            if (full := self._full.get(request)) is not None:
                more = min(more, max(0, full - length))
                if more and length + more == full:
                    stopped.append(index)
            self._known[request] = length + more
            tokens[index] += more

    def lost(self, instance: int, now_ns: int) -> None:
        """See `Hands`. Survivors of a broken group stay busy until the step would have ended."""
        broken = [step for step, (group, _, _) in self._flying.items() if instance in group]
        for step in broken:
            del self._flying[step]
        self._scoring = {score: home for score, home in self._scoring.items() if home != instance}
        self._lanes.lost(instance)
        if self._copies is not None:
            self._copies.lost(instance, now_ns)

    def move(self, move: Move, now_ns: int) -> None:
        """See `Hands`."""
        if self._copies is None:
            raise UserError("a request is to be moved, but there is no network: give the simulation one")
        last = self._flying.get(max(move.after, default=-1))
        self._copies.begin(move, now_ns, None if last is None else last[1:])

    def cancel(self, move: int, now_ns: int) -> None:
        """See `Hands`."""
        if self._copies is not None:
            self._copies.cancel(move, now_ns)

    def next_moved_ns(self) -> int | None:
        """See `Hands`."""
        return None if self._copies is None else self._copies.next_ns

    def moved(self, now_ns: int) -> Event | None:
        """See `Hands`."""
        return None if self._copies is None else self._copies.take(now_ns)


def run(
    core: Core,
    arrivals: Iterable[Arrival],
    cost: Cost,
    *,
    events: Iterable[tuple[int, Event]] = (),
    observers: Iterable[Observer] = (),
    until_ns: int | None = None,
    copies: Copies | None = None,
) -> int:
    """Serve `arrivals` in virtual time; returns the number of events handled.

    Args:
        core: what is simulated, fresh.
        arrivals: the requests; they follow `events` where times are equal.
        cost: of each step.
        events: (time, event) of everything else from outside: WorkerUp of each instance, faults, aborts.
        observers: see every call of the core, in order.
        until_ns: end before the first event after this time; None: when nothing is left to happen.
        copies: carry moves out; None where there are none.
    """
    arrivals = list(arrivals)
    inputs: list[tuple[int, Event]] = [*events, *((a.at_ns, Arrived(a.request)) for a in arrivals)]
    return World(core, VirtualWorkers(cost, arrivals, copies), tuple(observers)).run(inputs, until_ns)
