"""`Gather`: the answers of a group's members to a step, and the one answer that they make together.

A step is answered when every member has answered: until then somebody may still write to its slots.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from plait.spec.sampling import Draw
from plait.spec.step import Step


@dataclass(slots=True)
class Gather:
    """A step that is under way."""

    step: Step
    draws: dict[int, tuple[Draw, ...]] = field(default_factory=dict)
    """Of members that carried it out."""
    faults: dict[int, str] = field(default_factory=dict)
    """Why others did not."""
    lost: dict[int, None] = field(default_factory=dict)
    """Members that will never answer."""
    done: asyncio.Event = field(default_factory=asyncio.Event)
    """No member computes it any more."""

    def drew(self, instance: int, draws: tuple[Draw, ...]) -> None:
        """A member has carried it out."""
        self.draws[instance] = draws
        self._settle()

    def failed(self, instance: int, reason: str) -> None:
        """A member has not, and says why."""
        self.faults.setdefault(instance, reason)
        self._settle()

    def lose(self, instance: int) -> None:
        """A member is gone."""
        self.lost[instance] = None
        self._settle()

    def _settle(self) -> None:
        if all(i in self.draws or i in self.faults or i in self.lost for i in self.step.group):
            self.done.set()

    @property
    def merged(self) -> tuple[Draw, ...]:
        """The answer of all, none of which failed."""
        return merged(self.step, [self.draws[member] for member in self.step.group])


def merged(step: Step, answers: Sequence[tuple[Draw, ...]]) -> tuple[Draw, ...]:
    """One draw for each row: what its master drew, with the prompt's log-probabilities that members found.

    Args:
        answers: of each member, in ring order.
    """
    if len(answers) == 1:
        return answers[0]
    strides = [row.stride for row in step.rows] + [1] * len(step.again)
    return tuple(_row(stride, draws) for stride, *draws in zip(strides, *answers, strict=True))


def _row(stride: int, draws: list[Draw]) -> Draw:
    drawn = [draw for draw in draws if draw.tokens]
    assert len(drawn) <= 1, "a row has one master"
    found = [draw.prompt_logprobs for draw in draws]
    count = sum(map(len, found))
    # Position i of a striped row was computed by member i modulo the stride; of another one by its master.
    entries = [found[i % stride][i // stride] for i in range(count)] if stride > 1 else sum(found, ())
    return replace(drawn[0] if drawn else Draw(()), prompt_logprobs=tuple(entries))
