"""`Retuner`: the tail of the next iteration, from the times and lengths of those before."""

from collections import deque
from collections.abc import Sequence

import numpy as np

from plait.cost.fitted import Fitted
from plait.cost.reading import StatedReading
from plait.planner.tail import TailModel, TailTuner, Tuned
from plait.sim.measured import timings
from plait.sim.rollout import SampleLength
from plait.spec.command import Command, Score
from plait.spec.event import Event, Moved, Scored, StepDone
from plait.spec.move import Move
from plait.workload.journal import Entry

ITERATIONS = 5
"""Whose lengths count: distributions drift as a policy learns."""


class Retuner:
    """An observer of a driver, which keeps what an iteration's steps, moves and readings took."""

    def __init__(self, instances: int, seed: int) -> None:
        self._instances = instances
        self._rng = np.random.default_rng(seed)
        self._seen: deque[list[SampleLength]] = deque(maxlen=ITERATIONS)
        self._steps: list[Entry] = []
        self._asked: dict[int, tuple[int, Score | Move]] = {}
        self._read = [0, 0]
        """Nanoseconds and tokens of readings; instances that share a crew each count its whole time."""
        self._moved = [0, 0]

    def see(self, now_ns: int, event: Event, commands: Sequence[Command]) -> None:
        """Take one call of `handle`."""
        if isinstance(event, StepDone) or commands:
            self._steps.append(Entry(now_ns, event, tuple(commands)))
        for command in commands:
            if isinstance(command, Score | Move):
                self._asked[command.id] = now_ns, command
        if isinstance(event, Scored | Moved):
            id = event.score if isinstance(event, Scored) else event.move
            asked_ns, command = self._asked.pop(id, (now_ns, None))
            if isinstance(command, Score):
                self._add(self._read, now_ns - asked_ns, sum(command.tokens))
            elif isinstance(command, Move):
                self._add(self._moved, now_ns - asked_ns, command.count)

    def tune(self, samples: Sequence[SampleLength], slots: int) -> Tuned | None:
        """The tail of the next iteration, which has as many samples as this one; None where this one had too
        few steps to tell: the tail stays what it is.

        Args:
            samples: as they turned out.
            slots: KV of an instance, in tokens.
        """
        self._seen.append(list(samples))
        measured = timings(self._steps)
        self._steps.clear()
        decodes = sum(not any(row.given for row in each.step.rows) for each in measured)
        if not 0 < decodes < len(measured):
            return None
        reading = StatedReading(self._read[0] / max(1, self._read[1]))
        move_token_ns = self._moved[0] / max(1, self._moved[1])
        model = TailModel(self._instances, Fitted.fit(measured), reading, slots, move_token_ns)
        self._asked.clear()
        self._read, self._moved = [0, 0], [0, 0]
        seen = [sample for iteration in self._seen for sample in iteration]
        return TailTuner(model).tune(seen, len(samples), self._rng)

    @staticmethod
    def _add(sums: list[int], ns: int, tokens: int) -> None:
        sums[0] += ns
        sums[1] += tokens
