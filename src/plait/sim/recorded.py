"""`Recorded`: the hands of a live run, so that a simulation can walk the same road."""

from collections import deque
from collections.abc import Iterable
from heapq import heappop, heappush

from plait.spec.command import Score, Wake
from plait.spec.event import EXTERNAL, Event, Moved, MoveFailed, Scored, StepDone, StepFailed, Woken
from plait.spec.move import Move
from plait.spec.step import Step
from plait.workload.journal import Entry

Answer = StepDone | StepFailed | Moved | MoveFailed | Scored


class Recorded:
    """Answers each step, move, score and alarm as a journal says: after its measured duration, with its
    answer.

    The durations are from issue to answer, queueing included, so there are no lanes here. What was never
    answered live is never answered. `inputs` are the events that no command caused.
    """

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.inputs: list[tuple[int, Event]] = []
        """(time, event) for `World.run`."""
        self._duration_ns: dict[int, int] = {}
        self._answers: dict[int, Answer] = {}
        """By the id of the step, move or score: they share one order."""
        self._alarm_ns: dict[int, deque[int]] = {}
        """Alarm time -> how long after its `Wake` each alarm for it rang, in order."""
        self._moving: list[tuple[int, int]] = []
        """(time of the answer, move), a heap."""
        issued_ns: dict[int, int] = {}
        set_ns: dict[int, deque[int]] = {}
        for entry in entries:
            event = entry.event
            if isinstance(event, EXTERNAL):
                self.inputs.append((entry.now_ns, event))
            elif isinstance(event, Woken):
                waited_ns = entry.now_ns - set_ns[event.at_ns].popleft()
                self._alarm_ns.setdefault(event.at_ns, deque()).append(waited_ns)
            else:
                id = _answered(event)
                self._duration_ns[id] = entry.now_ns - issued_ns[id]
                self._answers[id] = event
            for command in entry.commands:
                if isinstance(command, Step | Move | Score):
                    issued_ns[command.id] = entry.now_ns
                elif isinstance(command, Wake):
                    set_ns.setdefault(command.at_ns, deque()).append(entry.now_ns)

    def step_end_ns(self, step: Step, now_ns: int) -> int | None:
        """See `Hands`."""
        return self._end_ns(step.id, now_ns)

    def score_end_ns(self, score: Score, now_ns: int) -> int | None:
        """See `Hands`."""
        return self._end_ns(score.id, now_ns)

    def wake_ns(self, at_ns: int, now_ns: int) -> int | None:
        """See `Hands`."""
        waits = self._alarm_ns.get(at_ns)
        return now_ns + waits.popleft() if waits else None

    def answer(self, work: Step | Score) -> Event:
        """See `Hands`."""
        return self._answers[work.id]

    def move(self, move: Move, now_ns: int) -> None:
        """See `Hands`."""
        if move.id in self._answers:
            heappush(self._moving, (now_ns + self._duration_ns[move.id], move.id))

    def cancel(self, move: int, now_ns: int) -> None:
        """The recorded answer already came as late as it came after being cancelled."""

    def next_moved_ns(self) -> int | None:
        """See `Hands`."""
        return self._moving[0][0] if self._moving else None

    def moved(self, now_ns: int) -> Event:
        """See `Hands`."""
        return self._answers[heappop(self._moving)[1]]

    def lost(self, instance: int, now_ns: int) -> None:
        """The journal already leaves out what a lost worker did not answer."""

    def _end_ns(self, id: int, now_ns: int) -> int | None:
        duration_ns = self._duration_ns.get(id)
        return None if duration_ns is None else now_ns + duration_ns


def _answered(event: Answer) -> int:
    match event:
        case StepDone() | StepFailed():
            return event.step
        case Scored():
            return event.score
        case _:
            return event.move
