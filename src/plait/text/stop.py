"""Stop strings in text that arrives in pieces."""

from collections.abc import Sequence


class StopSearch:
    """Finds the stop string that is complete first; holds back text that may be the start of one.

    What is found and emitted does not depend on how the text is cut into pieces. Of stops that are
    complete at the same character the longest wins. Costs O(number of stops) a character: each stop
    has a Knuth-Morris-Pratt automaton.
    """

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        """`include`: leave the stop string in the emitted text. No stop may be empty."""
        assert all(stops), "an empty stop string matches everywhere"
        self._stops = sorted(stops, key=len, reverse=True)
        self._tables = [_borders(stop) for stop in self._stops]
        self._matched = [0] * len(self._stops)
        self._include = include
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """(text that is safe to emit, the stop string that was found or None).

        After a stop was found the search is over; text behind it is dropped.
        """
        if not self._stops:
            return text, None
        start = len(self._held)
        text = self._held + text
        for end in range(start, len(text)):
            stop = self._step(text[end])
            if stop is not None:
                self._held = ""
                return text[: end + 1 - (0 if self._include else len(stop))], stop
        cut = len(text) - max(self._matched)
        self._held = text[cut:]
        return text[:cut], None

    def flush(self) -> str:
        """The text ended without a stop: what was held back."""
        held, self._held = self._held, ""
        return held

    def _step(self, char: str) -> str | None:
        for i, (stop, table) in enumerate(zip(self._stops, self._tables, strict=True)):
            matched = self._matched[i]
            while matched and stop[matched] != char:
                matched = table[matched - 1]
            self._matched[i] = matched = matched + (stop[matched] == char)
            if matched == len(stop):
                return stop
        return None


def _borders(stop: str) -> list[int]:
    """Entry i: length of the longest proper prefix of stop[: i + 1] that is also its suffix."""
    table = [0] * len(stop)
    length = 0
    for i in range(1, len(stop)):
        while length and stop[i] != stop[length]:
            length = table[length - 1]
        length += stop[i] == stop[length]
        table[i] = length
    return table
