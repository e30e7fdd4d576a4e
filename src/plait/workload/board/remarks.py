"""`Remarks`: the event log in words, the newest of each kind."""

from collections import deque

from plait.workload.board.picture import Remark

KEPT = {"worker": 24, "role": 24, "fault": 24, "rollout": 12, "refusal": 12, "why": 40, "move": 24}
"""Lines of each kind: a flood of one does not wash away the others."""
LONGEST = 400
"""Characters of a line."""


class Remarks:
    """Lines in the order in which they were said."""

    def __init__(self) -> None:
        self._kept: dict[str, deque[tuple[int, Remark]]] = {
            kind: deque(maxlen=count) for kind, count in KEPT.items()
        }
        self._said = 0

    def say(self, now_ns: int, kind: str, text: str) -> None:
        """One more; said again at once, it counts."""
        lines = self._kept[kind]
        times = 1
        if lines and lines[-1][1].text == text[:LONGEST]:
            times = lines.pop()[1].times + 1
        self._said += 1
        lines.append((self._said, Remark(now_ns // 1000, kind, text[:LONGEST], times)))

    def newest_first(self) -> tuple[Remark, ...]:
        """For a picture."""
        lines = [line for kept in self._kept.values() for line in kept]
        return tuple(remark for _, remark in sorted(lines, key=lambda line: -line[0]))
