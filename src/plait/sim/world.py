"""`World`: a heap of timed events feeds a core; whoever carries its commands out says when they end.

inputs (arrivals, faults) --> heap --> core.handle --> Step, Score, Wake --> hands --> heap
                                                   |-> Move, Cancel --> hands, asked when the next one ends
                                                   `-> Token, End (observers see them)
"""

from collections.abc import Iterable, Sequence
from heapq import heapify, heappop, heappush
from typing import Protocol

from plait.spec.command import Command, Score, Wake
from plait.spec.event import Event, Woken, WorkerLost
from plait.spec.move import Cancel, Move
from plait.spec.step import Step
from plait.workload.journal import Core, Observer

INPUT, ANSWER, WOKEN = range(3)
"""Ranks: at one instant facts from outside come first, then answers, then alarms."""


Due = tuple[int, int, int, Event | Step | Score]
"""(time, rank, number, what comes then)."""


class Hands(Protocol):
    """Carries commands out in virtual time. Bodies: `VirtualWorkers`, `Recorded`.

    Moves share links, so when one ends is known only as long as nothing happens to the others: `World` asks
    before each event.
    """

    def step_end_ns(self, step: Step, now_ns: int) -> int | None:
        """When a step issued now will be answered; None: never."""
        ...

    def wake_ns(self, at_ns: int, now_ns: int) -> int | None:
        """When an alarm for `at_ns`, set now, will ring; None: never."""
        ...

    def score_end_ns(self, score: Score, now_ns: int) -> int | None:
        """When samples that are to be scored from now on will be; None: never."""
        ...

    def answer(self, work: Step | Score) -> Event | None:
        """The answer to what has come to its end; None if its worker was lost meanwhile."""
        ...

    def move(self, move: Move, now_ns: int) -> None:
        """A move begins, or joins a queue."""
        ...

    def cancel(self, move: int, now_ns: int) -> None:
        """A move should be answered soon."""
        ...

    def next_moved_ns(self) -> int | None:
        """When something happens next to the moves under way, as far as is known now; None: nothing."""
        ...

    def moved(self, now_ns: int) -> Event | None:
        """The answer to a move that ended at the time named last; None: something else happened to it."""
        ...

    def lost(self, instance: int, now_ns: int) -> None:
        """An instance died: its unfinished steps, and moves to it, will not be answered."""
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
        heap: list[Due] = [(at_ns, INPUT, seq, event) for seq, (at_ns, event) in enumerate(inputs)]
        heapify(heap)
        seq, now_ns, handled = len(heap), -1, 0
        while True:
            move_ns = hands.next_moved_ns()
            moves = move_ns is not None and (not heap or (move_ns, ANSWER) < heap[0][:2])
            if not moves and not heap:
                return handled
            due_ns = move_ns if moves and move_ns is not None else heap[0][0]
            if until_ns is not None and due_ns > until_ns:
                return handled
            event = hands.moved(due_ns) if moves else self._fact(heappop(heap)[3])
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
                seq = self._carry_out(command, now_ns, heap, seq)

    def _fact(self, item: Event | Step | Score) -> Event | None:
        return self._hands.answer(item) if isinstance(item, Step | Score) else item

    def _carry_out(self, command: Command, now_ns: int, heap: list[Due], seq: int) -> int:
        """Returns the number of the next entry of the heap."""
        hands = self._hands
        if isinstance(command, Step | Score):
            if isinstance(command, Step):
                end_ns = hands.step_end_ns(command, now_ns)
            else:
                end_ns = hands.score_end_ns(command, now_ns)
            if end_ns is not None:
                heappush(heap, (end_ns, ANSWER, seq, command))
                seq += 1
        elif isinstance(command, Wake):
            ring_ns = hands.wake_ns(command.at_ns, now_ns)
            if ring_ns is not None:
                heappush(heap, (ring_ns, WOKEN, seq, Woken(command.at_ns)))
                seq += 1
        elif isinstance(command, Move):
            hands.move(command, now_ns)
        elif isinstance(command, Cancel):
            hands.cancel(command.move, now_ns)
        return seq
