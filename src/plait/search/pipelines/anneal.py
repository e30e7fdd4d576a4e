"""The twin of native/schedule_search.cpp: annealing of makespan and memory together.

A run begins with a listed schedule, first the greedy one and then by random preferences, and swaps
neighbours. Only a swap on a critical path can shorten a schedule, so those are tried; where a rank holds more
than is aimed at, also those that could make it hold less there. The energy is the makespan plus a price for
bytes above the aim. Runs without an aim make the schedule as short as they can. The others aim at memory
between the best so far and a floor that rises with every run that failed; as soon as one of them is as short
as the shortest known and within its aim, the aim is lowered. Runs grow to
sixteen times the length of the first one.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import exp, floor, inf, sqrt

from plait.search.pipelines.arrangement import Arrangement, Dice, listed
from plait.search.pipelines.tasks import SeriesRows, Tasks

CHECK = 256
"""Moves between two looks at the clock, and between two temperatures."""
NEAR = 1e-9
"""Makespans that differ by less are equal but for rounding."""
LONGEST = 16
"""Times the length of the first run is that of the last ones."""
LESS = 1 / 64
"""Of the memory reached is asked for as soon as it is reached."""


@dataclass(frozen=True, slots=True)
class Annealing:
    """How one thread anneals."""

    hot_s: float
    """Temperature at the start of a run."""
    cold_s: float
    """Temperature at its end."""
    price_s: float
    """Of a byte above the aim at one place of a row."""
    crowds: float
    """Share of moves that lower memory, while some is above the aim."""
    patterns: float
    """Share of critical swaps that are repeated in the periods that follow."""
    length: int
    """Moves of the first run; further ones have twice as many, up to sixteen times."""


@dataclass(frozen=True, slots=True)
class Hints:
    """What starts are listed by, for each series."""

    urgency: tuple[float, ...]
    """Added to a random preference."""
    ahead: tuple[int, ...]
    """Micro-batches that fill the pipeline, for series that take bytes."""


@dataclass
class Board:
    """When to stop, and the best so far."""

    goal_s: float
    """A shorter makespan is not sought."""
    goal_bytes: float
    """Less is not sought."""
    moves: int
    """Stop after so many; 0: never."""
    seconds: float
    clock: Callable[[], float] | None
    makespan_s: float = inf
    bytes: float = inf
    rows: SeriesRows = field(default_factory=list)
    steps: list[tuple[float, float, float]] = field(default_factory=list)
    """Improvements: seconds, makespan, bytes."""

    def __post_init__(self) -> None:
        self._begun = self._now()

    def _now(self) -> float:
        return 0.0 if self.clock is None else self.clock()

    def over(self, moves: int) -> bool:
        """Whether to stop after so many moves."""
        if self.makespan_s <= self.goal_s and self.bytes <= self.goal_bytes:
            return True
        return 0 < self.moves <= moves or self._now() - self._begun >= self.seconds

    def add(self, order: Arrangement) -> None:
        """Take what is shorter than the best, or as short and smaller."""
        makespan, bytes = self.counted(order), order.peak
        longer = makespan > self.makespan_s * (1 + NEAR)
        if longer or (makespan >= self.makespan_s * (1 - NEAR) and bytes >= self.bytes):
            return
        self.makespan_s, self.bytes = min(makespan, self.makespan_s), bytes
        self.rows = [list(row) for row in order.rows]
        self.steps.append((self._now() - self._begun, order.makespan, bytes))

    def counted(self, order: Arrangement) -> float:
        """The makespan, where it is not below the goal; what is shorter is no better."""
        return max(order.makespan, self.goal_s)


class Cooling:
    """One annealing. `aim` is what ranks should hold at most; without one the run is free."""

    def __init__(self, tasks: Tasks, how: Annealing, board: Board, dice: Dice, aim: float) -> None:
        self._tasks, self._how, self._board, self._dice = tasks, how, board, dice
        self._aim, self._reach, self._free = aim, board.makespan_s, aim == inf
        self._candidates: list[tuple[int, int]] = []
        self._stale, self._held = True, False

    def anneal(self, rows: SeriesRows, length: int, moves: int) -> tuple[bool, int]:
        """From these rows on; whether the aim was held in a schedule as short as the best, and all moves so
        far."""
        order = Arrangement(self._tasks, rows, self._aims(self._aim))
        self._note(order)
        heat, energy = self._how.hot_s, self._cost(order)
        cooling = (self._how.cold_s / self._how.hot_s) ** (CHECK / length)
        for move in range(length):
            if move % CHECK == 0:
                if self._board.over(moves) or (self._free and self._reach <= self._board.goal_s):
                    break
                heat *= cooling
            moves += 1
            order.begin()
            if not self._change(order):
                continue
            order.settle()
            new = self._cost(order)
            if new > energy and self._dice.unit() >= exp((energy - new) / heat):
                order.undo()
                continue
            energy, self._stale = new, True
            if self._note(order):
                energy = self._cost(order)
        return self._held, moves

    def _cost(self, order: Arrangement) -> float:
        return self._board.counted(order) + self._how.price_s * order.excess

    def _aims(self, aim: float) -> list[float]:
        least = (min(cap, aim) for cap in self._tasks.caps)
        return [bytes if bytes == inf else float(floor(bytes)) for bytes in least]

    def _change(self, order: Arrangement) -> bool:
        if order.excess > 0 and self._dice.unit() < self._how.crowds:
            crowd = order.crowded(self._dice)
            return crowd is not None and order.swap(*crowd)
        if self._stale:
            self._candidates = order.critical(self._dice)
        self._stale = False
        if not self._candidates:
            return False
        rank, place = self._candidates[self._dice.below(len(self._candidates))]
        one, other = order.rows[rank][place : place + 2]
        if not order.swap(rank, place):
            return False
        if self._dice.unit() < self._how.patterns:
            more = 1 + self._dice.below(self._tasks.series[one].count)
            place += 2
            while more > 0 and place + 1 < len(order.rows[rank]):
                if order.rows[rank][place : place + 2] == [one, other]:
                    order.swap(rank, place)
                    place, more = place + 1, more - 1
                place += 1
        return True

    def _note(self, order: Arrangement) -> bool:
        """Tell the board of what is as short as was asked and holds no more. Then less is asked: of a free
        run time, until there is no less; of others memory. True: the energy has changed."""
        makespan = self._board.counted(order)
        if makespan > self._reach * (1 + NEAR) or order.excess > 0:
            return False
        if self._free and makespan >= self._reach * (1 - NEAR):
            return False
        self._board.add(order)
        self._reach = self._board.makespan_s
        self._held = True
        if not self._free:
            order.aims = self._aims(order.peak * (1 - LESS))
        return not self._free


def search(tasks: Tasks, hints: Hints, how: Annealing, board: Board, seed: int) -> None:
    """Run after run, until the board says that it is over."""
    dice, moves, turn, length = Dice(seed), 0, 0, how.length
    low = board.goal_bytes
    while not board.over(moves):
        free = turn == 0 or (turn % 2 == 0 and board.makespan_s > board.goal_s)
        rows = _start(tasks, hints, dice, turn == 0, free)
        aim = inf if free else sqrt(low * board.bytes)
        held, moves = Cooling(tasks, how, board, dice, aim).anneal(rows, length, moves)
        if not free and not held:
            low = sqrt(low * aim)
        turn, length = turn + 1, min(2 * length, LONGEST * how.length)


def _start(tasks: Tasks, hints: Hints, dice: Dice, greedy: bool, free: bool) -> SeriesRows:
    """The first schedule is greedy; later ones differ by chance. Runs that aim at little memory begin with
    little."""
    preference: list[float] = []
    ahead = []
    for index, each in enumerate(tasks.series):
        urgency = hints.urgency[index]
        preference += [urgency if greedy else urgency + dice.unit() for _ in range(3)]
        ahead.append(each.count if free else hints.ahead[index] + dice.below(3))
    return listed(tasks, preference, ahead)
