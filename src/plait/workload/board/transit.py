"""`Transit`: steps and moves that are not answered, and what is given back when they are.

Ids of steps and moves are one order, so whoever waits for some of both keeps one set of ids.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from plait.spec.move import Move
from plait.spec.step import Step
from plait.workload.board.holdings import Holdings


@dataclass(slots=True, eq=False)
class Journey:
    """Moves of one request that succeed or fail together."""

    request: int
    sources: dict[int, None] = field(default_factory=dict)
    targets: dict[int, None] = field(default_factory=dict)
    flying: set[int] = field(default_factory=set)
    """Moves without an answer."""
    broken: bool = False
    """What it brings is of no use."""


@dataclass(slots=True, eq=False)
class _Due:
    """What is released when ids are answered."""

    ids: set[int]
    request: int
    instance: int | None
    """None: everywhere."""


class Transit:
    """Keeps `Holdings` up to date with answers."""

    def __init__(self, holdings: Holdings) -> None:
        self.steps: dict[int, tuple[int, Step]] = {}
        """Id -> when it was issued, and the step."""
        self.moves: dict[int, tuple[int, Move]] = {}
        self._holdings = holdings
        self._journeys: dict[int, Journey] = {}
        """By request."""
        self._due: list[_Due] = []

    # ---- steps ---------------------------------------------------------------------------------

    def issue(self, step: Step, now_ns: int) -> None:
        """A step goes out: what it closes is free, what it tells is held."""
        self.steps[step.id] = now_ns, step
        for request in step.closed:
            for member in step.group:
                self._holdings.release(request, member)
        for row in step.rows:
            if row.request in step.opened:
                self._holdings.retell(row.request, row.spans)
            else:
                for span in row.spans:
                    self._holdings.take(row.request, span)

    def land(self, step: int) -> tuple[int, Step] | None:
        """A step was answered; None: it was lost before."""
        found = self.steps.pop(step, None)
        self._answered(step)
        return found

    # ---- moves ---------------------------------------------------------------------------------

    def begin(self, move: Move, now_ns: int, failed: Move | None) -> bool:
        """A move is said. Whether it is `failed`, which was answered just now, said again."""
        again = failed is not None and (failed.request, failed.source, failed.target) == (
            move.request,
            move.source,
            move.target,
        )
        if failed is not None and not again and failed.request == move.request:
            self.give_up(failed)
        journey = self._journeys.setdefault(move.request, Journey(move.request))
        journey.sources[move.source.instance] = journey.targets[move.target.instance] = None
        journey.flying.add(move.id)
        self.moves[move.id] = now_ns, move
        self._holdings.take(move.request, move.target)
        return again

    def cancel(self, move: int) -> None:
        """Nobody wants it any more; its answer still comes."""
        if move in self.moves:
            self._journeys[self.moves[move][1].request].broken = True

    def moved(self, move: int) -> tuple[int, Move] | None:
        """A move succeeded; None: it was lost before."""
        return self._arrive(move, failed=False)

    def failed(self, move: int) -> tuple[int, Move] | None:
        """A move failed. Whether it is said again is seen in the commands that follow: else `give_up`."""
        return self._arrive(move, failed=True)

    def give_up(self, move: Move) -> None:
        """A move that failed is not said again."""
        journey = self._journeys.get(move.request)
        if journey is not None:
            journey.broken = True
            self._settle(journey)

    def travels(self, request: int) -> bool:
        """Some of it is on its way."""
        return request in self._journeys

    def _arrive(self, move: int, *, failed: bool) -> tuple[int, Move] | None:
        found = self.moves.pop(move, None)
        if found is not None:
            journey = self._journeys[found[1].request]
            journey.flying.discard(move)
            if not failed or journey.broken:
                self._settle(journey)
        self._answered(move)
        return found

    def _settle(self, journey: Journey) -> None:
        if journey.flying:
            return
        del self._journeys[journey.request]
        if journey.broken:
            for target in journey.targets:
                self._holdings.release(journey.request, target)
            return
        for source in journey.sources:
            self._release(journey.request, source, self._steps_of(journey.request))

    # ---- what is over --------------------------------------------------------------------------

    def end(self, request: int) -> None:
        """A request is over: what it holds is free once nothing of it is under way."""
        journey = self._journeys.get(request)
        flying = self._steps_of(request) | (journey.flying if journey else set())
        self._release(request, None, flying)

    def lost(self, instance: int) -> list[int]:
        """An instance is gone: steps with it and moves to it will not be answered. Requests that were there
        and are nowhere under way."""
        there = [request for request in self._holdings.on(instance) if not self.travels(request)]
        self._holdings.lost(instance)
        for id in [id for id, (_, step) in self.steps.items() if instance in step.group]:
            self.land(id)
        for id in [id for id, (_, move) in self.moves.items() if move.target.instance == instance]:
            found = self.failed(id)
            assert found is not None
            self.give_up(found[1])
        return there

    def _steps_of(self, request: int) -> set[int]:
        return {id for id, (_, step) in self.steps.items() if request in step.requests}

    def _release(self, request: int, instance: int | None, after: Iterable[int]) -> None:
        due = _Due(set(after), request, instance)
        if due.ids:
            self._due.append(due)
        else:
            self._carry_out(due)

    def _answered(self, id: int) -> None:
        if not self._due:
            return
        for due in self._due:
            due.ids.discard(id)
        for due in [due for due in self._due if not due.ids]:
            self._due.remove(due)
            self._carry_out(due)

    def _carry_out(self, due: _Due) -> None:
        if due.instance is None:
            self._holdings.drop(due.request)
        else:
            self._holdings.release(due.request, due.instance)
