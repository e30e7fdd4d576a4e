"""The twin of native/schedule_arrangement.cpp: a schedule under change, in plain Python and without its
shortcuts.

Native code keeps a topological order and recomputes what a swap reaches; here every change is computed anew.
Times, bytes and random numbers are the same to the last bit.
"""

from collections.abc import Sequence
from math import inf

from plait.search.pipelines.tasks import SeriesRows, Tasks
from plait.search.pipelines.timing import start_times

MASK = (1 << 64) - 1


class Dice:
    """splitmix64 (Steele, Lea, Flood 2014), as in native code."""

    def __init__(self, seed: int) -> None:
        self._state = seed & MASK

    def next(self) -> int:
        """64 random bits."""
        self._state = z = (self._state + 0x9E3779B97F4A7C15) & MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    def unit(self) -> float:
        """From 0 to below 1."""
        return (self.next() >> 11) * 2.0**-53

    def below(self, bound: int) -> int:
        """A whole number from 0 to below `bound`."""
        return (self.next() >> 32) * bound >> 32


class Arrangement:
    """Rows whose neighbours can be swapped; a change is `begin`, some swaps, `settle`, and perhaps `undo`."""

    def __init__(self, tasks: Tasks, rows: SeriesRows, aims: Sequence[float]) -> None:
        self.tasks = tasks
        self.rows = [list(row) for row in rows]
        self.aims = list(aims)
        self._old: SeriesRows = []
        starts = start_times(tasks, self.rows)
        assert starts is not None, "rows to start from have no circle"
        self._starts = starts

    def begin(self) -> None:
        """Remember the present state for `undo`."""
        self._old, self._old_starts = [row[:] for row in self.rows], self._starts

    def undo(self) -> None:
        """Back to `begin`."""
        self.rows, self._starts = self._old, self._old_starts

    def swap(self, rank: int, place: int) -> bool:
        """Swap a place with the next one; False and no change where that cannot be."""
        row = self.rows[rank]
        one, other = row[place], row[place + 1]
        if one == other or self._feeds(rank, place):
            return False
        row[place], row[place + 1] = other, one
        if start_times(self.tasks, self.rows) is None:
            row[place], row[place + 1] = one, other
            return False
        return True

    def settle(self) -> None:
        """Compute what the swaps have changed."""
        starts = start_times(self.tasks, self.rows)
        assert starts is not None
        self._starts = starts

    @property
    def makespan(self) -> float:
        """When the last task ends."""
        return max((self._end(rank, len(row) - 1) for rank, row in enumerate(self.rows) if row), default=0.0)

    @property
    def excess(self) -> float:
        """Bytes above the aims, summed over the places of all rows."""
        rows = enumerate(self._held())
        return sum(max(0.0, held - self.aims[rank]) for rank, row in rows for held in row)

    @property
    def peak(self) -> float:
        """The most bytes that any rank holds."""
        return max((held for row in self._held() for held in row), default=0.0)

    def critical(self, dice: Dice) -> list[tuple[int, int]]:
        """Swaps on one critical path, chosen at random, from its end to its start."""
        places = self._places()
        at, last = None, 0
        for rank, row in enumerate(self.rows):
            if row and self._end(rank, len(row) - 1) == self.makespan:
                last += 1
                if dice.below(last) == 0:
                    at = (rank, len(row) - 1)
        found = []
        while at is not None:
            rank, place = at
            index = self.rows[rank][place]
            each, k = self.tasks.series[index], self.rows[rank][:place].count(index)
            start = self._starts[rank][place]
            source = places[each.after, k] if each.after >= 0 else None
            by_row = place > 0 and self._end(rank, place - 1) == start
            by_data = source is not None and self._end(*source) + each.lag_s == start
            if by_row and self.rows[rank][place - 1] != index and source != (rank, place - 1):
                found.append((rank, place - 1))
            left = (rank, place - 1)
            if by_row and by_data:
                at = left if dice.next() & 1 else source
            else:
                at = left if by_row else source if by_data else None
        return found

    def crowded(self, dice: Dice) -> tuple[int, int] | None:
        """A place above its aim from which a task that takes bytes can go, or to which one that gives can
        come."""
        rank = dice.below(self.tasks.problem.ranks)
        row, held = self.rows[rank], self._held()[rank]
        last = len(row) - 1
        if last < 1:
            return None
        start = dice.below(last)
        for i in range(last):
            place = (start + i) % last
            one, other = (self.tasks.series[row[place + j]] for j in (0, 1))
            lowers = one is not other and (one.takes > 0 or other.gives > 0)
            if held[place] > self.aims[rank] and lowers and not self._feeds(rank, place):
                return rank, place
        return None

    def _feeds(self, rank: int, place: int) -> bool:
        """Whether the next place waits for the result of this one."""
        row = self.rows[rank]
        one, other = row[place], row[place + 1]
        if self.tasks.series[other].after != one:
            return False
        return row[:place].count(one) == row[: place + 1].count(other)

    def _held(self) -> list[list[float]]:
        found = []
        for row in self.rows:
            now, line = 0.0, []
            for index in row:
                now += self.tasks.series[index].takes
                line.append(now)
                now -= self.tasks.series[index].gives
            found.append(line)
        return found

    def _end(self, rank: int, place: int) -> float:
        return self._starts[rank][place] + self.tasks.series[self.rows[rank][place]].time_s

    def _places(self) -> dict[tuple[int, int], tuple[int, int]]:
        seen = [0] * len(self.tasks.series)
        found = {}
        for rank, row in enumerate(self.rows):
            for place, index in enumerate(row):
                found[index, seen[index]] = (rank, place)
                seen[index] += 1
        return found


def listed(tasks: Tasks, preference: Sequence[float], ahead: Sequence[int]) -> SeriesRows:
    """Tasks in the order in which they can start; of those that could start at the same time on a rank the
    most preferred. Empty where all that could start is held back by `ahead`.

    Args:
        preference: of each series in each third of its micro-batches.
        ahead: of each series that takes bytes, the most micro-batches that may hold them.
    """
    done = [0] * len(tasks.series)
    free = [0.0] * tasks.problem.ranks
    ends: list[list[float]] = [[] for _ in tasks.series]
    rows: SeriesRows = [[] for _ in free]
    offers = [_offer(tasks, rank, (preference, ahead), (done, free, ends)) for rank in range(len(free))]
    for _ in range(tasks.count):
        rank = min(range(len(free)), key=lambda each: offers[each][0])
        index = offers[rank][2]
        if index < 0:
            return []
        free[rank] = offers[rank][0] + tasks.series[index].time_s
        ends[index].append(free[rank])
        done[index] += 1
        rows[rank].append(index)
        for each in (rank, *(tasks.series[follower].rank for follower in tasks.followers[index])):
            offers[each] = _offer(tasks, each, (preference, ahead), (done, free, ends))
    return rows


def _offer(
    tasks: Tasks,
    rank: int,
    rule: tuple[Sequence[float], Sequence[int]],
    state: tuple[list[int], list[float], list[list[float]]],
) -> tuple[float, float, int]:
    """What a rank could start first: start, preference and series; the series is -1 where nothing can."""
    (preference, ahead), (done, free, ends) = rule, state
    found = (inf, -1.0, -1)
    for index in tasks.of_rank[rank]:
        each, k = tasks.series[index], done[index]
        if k == each.count or (each.closes >= 0 and k - done[each.closes] >= ahead[index]):
            continue
        start = free[rank]
        if each.after >= 0:
            if len(ends[each.after]) <= k:
                continue
            start = max(start, ends[each.after][k] + each.lag_s)
        liked = preference[3 * index + 3 * k // each.count]
        if start < found[0] or (start == found[0] and liked > found[1]):
            found = (start, liked, index)
    return found
