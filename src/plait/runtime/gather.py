"""`Gather`: the answers of a group's members to a step, and the one answer that they make together."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from plait.spec.sampling import Draw
from plait.spec.step import Step


@dataclass(slots=True)
class Gather:
    """A step that is under way on several instances."""

    step: Step
    draws: dict[int, tuple[Draw, ...]] = field(default_factory=dict)
    """Of the members that have answered."""

    def answered(self, instance: int, draws: tuple[Draw, ...]) -> tuple[Draw, ...] | None:
        """A member answers. Returns the draws of all once the last one has."""
        if len(self.step.group) == 1:
            return draws
        self.draws[instance] = draws
        if len(self.draws) < len(self.step.group):
            return None
        return merged(self.step, [self.draws[member] for member in self.step.group])


def merged(step: Step, answers: Sequence[tuple[Draw, ...]]) -> tuple[Draw, ...]:
    """One draw for each row: what its master drew, with the prompt's log-probabilities that members found.

    Args:
        answers: of each member, in ring order.
    """
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
