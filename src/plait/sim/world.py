"""`World`: a heap of timed events feeds a core; whoever carries steps out says when they end.

inputs (arrivals, faults) --> heap --> core.handle --> Step, Wake --> hands --> heap
                                                   `-> Token, End (observers see them)
"""

from collections.abc import Iterable, Sequence
from heapq import heapify, heappop, heappush
from typing import Protocol

from plait.spec.command import Wake
from plait.spec.event import Event, Woken, WorkerLost
from plait.spec.step import Step
from plait.workload.journal import Core, Observer

INPUT, ANSWER, WOKEN = range(3)
"""Ranks: at one instant facts from outside come first, then answers, then alarms."""


class Hands(Protocol):
    """Carries commands out in virtual time. Bodies: `VirtualWorkers`, `Recorded`."""

    def step_end_ns(self, step: Step, now_ns: int) -> int | None:
        """When a step issued now will be answered; None: never."""
        ...

    def wake_ns(self, at_ns: int, now_ns: int) -> int | None:
        """When an alarm for `at_ns`, set now, will ring; None: never."""
        ...

    def answer(self, step: Step) -> Event | None:
        """The answer to a step whose end has come; None if its worker was lost meanwhile."""
        ...

    def lost(self, instance: int, now_ns: int) -> None:
        """An instance died: its unfinished steps will not be answered."""
        ...


class World:
    """Runs a core against virtual hands. Time is integer nanoseconds; it rises strictly at every event."""

    def __init__(self, core: Core, hands: Hands, observers: Sequence[Observer] = ()) -> None:
        self._core = core
        self._hands = hands
        self._observers = tuple(observers)

    def run(self, inputs: Iterable[tuple[int, Event]], until_ns: int | None = None) -> int:
        """Feed `inputs` (time, event), in the order given where times are equal, and all that follows from
        them.

        Stops when nothing is left to happen, or before the first event after `until_ns`. Returns the number
        of events handled.
        """
        handle, hands, observers = self._core.handle, self._hands, self._observers
        heap: list[tuple[int, int, int, Event | Step]] = [
            (at_ns, INPUT, seq, event) for seq, (at_ns, event) in enumerate(inputs)
        ]
        heapify(heap)
        seq, now_ns, handled = len(heap), -1, 0
        while heap:
            due_ns, _, _, item = heappop(heap)
            if until_ns is not None and due_ns > until_ns:
                break
            event = hands.answer(item) if isinstance(item, Step) else item
            if event is None:
                continue
            now_ns = due_ns if due_ns > now_ns else now_ns + 1
            if isinstance(event, WorkerLost):
                hands.lost(event.instance, now_ns)
            commands = handle(event, now_ns)
            handled += 1
            for observe in observers:
                observe(now_ns, event, commands)
            for command in commands:
                if isinstance(command, Step):
                    end_ns = hands.step_end_ns(command, now_ns)
                    if end_ns is not None:
                        heappush(heap, (end_ns, ANSWER, seq, command))
                        seq += 1
                elif isinstance(command, Wake):
                    ring_ns = hands.wake_ns(command.at_ns, now_ns)
                    if ring_ns is not None:
                        heappush(heap, (ring_ns, WOKEN, seq, Woken(command.at_ns)))
                        seq += 1
        return handled
