"""`FreePages`: the pages of a pool that nobody holds and nobody remembers, as runs of neighbours.

A prompt of a million tokens takes and gives back a few runs, not its pages one by one.
"""

from collections.abc import Iterator


class FreePages:
    """Disjoint runs [start, end), no two of which touch."""

    __slots__ = ("_end_of", "_start_of", "count")

    def __init__(self, count: int) -> None:
        self._end_of: dict[int, int] = {}
        """Start of a run -> its end; the run that changed last is last."""
        self._start_of: dict[int, int] = {}
        self.count = 0
        """Pages in all runs."""
        if count:
            self.give(0, count)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self._end_of.items())

    def take(self, most: int) -> tuple[int, int]:
        """At most `most` pages, from the front of the run that changed last; there must be one."""
        start, end = self._end_of.popitem()
        if end - start > most:
            rest = start + most
            self._end_of[rest] = end
            self._start_of[end] = rest
            end = rest
        else:
            del self._start_of[end]
        self.count -= end - start
        return start, end

    def give(self, start: int, end: int) -> None:
        """Pages [start, end), held by somebody until now, are free and joined with free neighbours."""
        self.count += end - start
        before = self._start_of.pop(start, None)
        if before is not None:
            del self._end_of[before]
            start = before
        after = self._end_of.pop(end, None)
        if after is not None:
            end = after
        self._end_of[start] = end
        self._start_of[end] = start
