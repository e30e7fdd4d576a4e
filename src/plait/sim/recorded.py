"""`Recorded`: the hands of a live run, so that a simulation can walk the same road."""

from collections import deque
from collections.abc import Iterable

from plait.spec.command import Wake
from plait.spec.event import EXTERNAL, Event, StepDone, StepFailed, Woken
from plait.spec.step import Step
from plait.workload.journal import Entry


class Recorded:
    """Answers each step and alarm as a journal says: after its measured duration, with its exact answer.

    The durations are from issue to answer, queueing included, so there are no lanes here. What was never
    answered live is never answered. `inputs` are the events that no command caused.
    """

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.inputs: list[tuple[int, Event]] = []
        """(time, event) for `World.run`."""
        self._duration_ns: dict[int, int] = {}
        self._answers: dict[int, StepDone | StepFailed] = {}
        self._alarm_ns: dict[int, deque[int]] = {}
        """Alarm time -> how long after its `Wake` each alarm for it rang, in order."""
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
                self._duration_ns[event.step] = entry.now_ns - issued_ns[event.step]
                self._answers[event.step] = event
            for command in entry.commands:
                if isinstance(command, Step):
                    issued_ns[command.id] = entry.now_ns
                elif isinstance(command, Wake):
                    set_ns.setdefault(command.at_ns, deque()).append(entry.now_ns)

    def step_end_ns(self, step: Step, now_ns: int) -> int | None:
        """See `Hands`."""
        duration_ns = self._duration_ns.get(step.id)
        return None if duration_ns is None else now_ns + duration_ns

    def wake_ns(self, at_ns: int, now_ns: int) -> int | None:
        """See `Hands`."""
        waits = self._alarm_ns.get(at_ns)
        return now_ns + waits.popleft() if waits else None

    def answer(self, step: Step) -> StepDone | StepFailed:
        """See `Hands`."""
        return self._answers[step.id]

    def lost(self, instance: int, now_ns: int) -> None:
        """The journal already leaves out what a lost worker did not answer."""
