"""Whether ranks that run a schedule can come to wait for each other for ever.

`programs` turns a schedule into what each rank does, messages included; `deadlock` runs the programs with
rendezvous semantics: a send ends only when its receive was posted, in the order of the pair, and a rank does
nothing meanwhile. That is the strictest a transport can be, so what passes here hangs nowhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from plait.search.pipelines.tasks import tasks_of
from plait.search.pipelines.timing import measure
from plait.spec.schedule import Action, Deed, PipelineProblem, PipelineSchedule, Program, Verb


@dataclass(frozen=True, slots=True)
class Wait:
    """A rank that waits for ever, and the rank that it waits for."""

    rank: int
    deed: Deed
    place: int
    """In the rank's program."""
    on: int

    def __str__(self) -> str:
        return f"rank {self.rank} {self.deed.verb.value} {self.deed.action} and waits for rank {self.on}"


@dataclass(frozen=True, slots=True)
class Deadlock:
    """Ranks that wait for each other, each for the next one and the last for the first; a single one waits
    for a rank whose program has ended."""

    cycle: tuple[Wait, ...]

    def __str__(self) -> str:
        return "; ".join(map(str, self.cycle))


def programs(problem: PipelineProblem, schedule: PipelineSchedule) -> tuple[Program, ...]:
    """What each rank does when a message is sent as soon as its content is there.

    Both ends of a message enter it in their programs at the same moment of one global order, the order of the
    ends of actions; so no set of ranks can wait in a circle, whatever the transport.

    Raises:
        UserError: it is no schedule of the problem.
    """
    timing, tasks = measure(problem, schedule), tasks_of(problem)
    deeds: list[list[Deed]] = [[] for _ in schedule.rows]
    order: list[tuple[float, int, int]] = []
    for rank, ends in enumerate(timing.ends_s):
        for place, end in enumerate(ends):
            heappush(order, (end, rank, place))
    while order:
        _, rank, place = heappop(order)
        action = schedule.rows[rank][place]
        deeds[rank].append(Deed(Verb.RUN, action))
        for follower in tasks.followers[tasks.index[action.model, action.stage, action.kind]]:
            target = tasks.series[follower].rank
            if target != rank:
                deeds[rank].append(Deed(Verb.SEND, action, target))
                deeds[target].append(Deed(Verb.RECEIVE, action, rank))
    return tuple(map(tuple, deeds))


def just_in_time(problem: PipelineProblem, schedule: PipelineSchedule) -> tuple[Program, ...]:
    """What each rank does when it receives right before it needs and sends right after it has.

    This is the naive order; many good schedules deadlock in it unless sends are buffered. The schedule need
    not be valid.
    """
    tasks = tasks_of(problem)
    found = []
    for rank, row in enumerate(schedule.rows):
        deeds: list[Deed] = []
        for action in row:
            index = tasks.index[action.model, action.stage, action.kind]
            before = tasks.series[index].after
            source = tasks.series[before]
            if before >= 0 and source.rank != rank:
                whose = Action(action.model, source.stage, source.kind, action.micro_batch)
                deeds.append(Deed(Verb.RECEIVE, whose, source.rank))
            deeds.append(Deed(Verb.RUN, action))
            targets = (tasks.series[follower].rank for follower in tasks.followers[index])
            deeds += [Deed(Verb.SEND, action, target) for target in targets if target != rank]
        found.append(tuple(deeds))
    return tuple(found)


def deadlock(ranks: Sequence[Program]) -> Deadlock | None:
    """Run the programs until all have ended (None) or nobody can go on."""
    place = [0] * len(ranks)
    able = list(range(len(ranks)))
    while able:
        rank = able.pop()
        while place[rank] < len(ranks[rank]):
            deed = ranks[rank][place[rank]]
            if deed.verb is not Verb.RUN:
                if not _meets(ranks, place, rank, deed):
                    break
                place[deed.peer] += 1
                able.append(deed.peer)
            place[rank] += 1
    stuck = [rank for rank, program in enumerate(ranks) if place[rank] < len(program)]
    return _cycle(ranks, place, stuck[0]) if stuck else None


def _meets(ranks: Sequence[Program], place: list[int], rank: int, deed: Deed) -> bool:
    """Whether the peer is at the other end of the same message."""
    if place[deed.peer] == len(ranks[deed.peer]):
        return False
    other = ranks[deed.peer][place[deed.peer]]
    return (
        other.verb is not Verb.RUN
        and other.verb is not deed.verb
        and other.peer == rank
        and other.action == deed.action
    )


def _cycle(ranks: Sequence[Program], place: list[int], rank: int) -> Deadlock:
    path: list[int] = []
    while rank not in path and place[rank] < len(ranks[rank]):
        path.append(rank)
        rank = ranks[rank][place[rank]].peer
    ring = path[path.index(rank) :] if rank in path else path[-1:]
    waits = ((each, ranks[each][place[each]]) for each in ring)
    return Deadlock(tuple(Wait(each, deed, place[each], deed.peer) for each, deed in waits))
