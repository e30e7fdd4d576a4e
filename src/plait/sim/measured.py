"""Step times out of a journal: a live run is profile data, and what is fitted to it predicts the next one."""

from collections.abc import Iterable

from plait.cost.fitted import Timing
from plait.spec.event import StepDone, StepFailed
from plait.spec.step import Step
from plait.workload.journal import Entry


def timings(entries: Iterable[Entry], members: int = 1) -> list[Timing]:
    """Times of the steps of groups of so many instances that had one phase only, as `Fitted.fit` wants them.

    A step starts when it was issued, or when the step before it on one of its instances was answered. So the
    times hold what a live step costs beside its computation: messages, sampling, dispatch.
    """
    issued: dict[int, tuple[int, Step]] = {}
    free_ns: dict[int, int] = {}
    found: list[Timing] = []
    for entry in entries:
        event = entry.event
        if isinstance(event, StepDone | StepFailed) and event.step in issued:
            issued_ns, step = issued.pop(event.step)
            start_ns = max(issued_ns, *(free_ns.get(member, 0) for member in step.group))
            free_ns |= dict.fromkeys(step.group, entry.now_ns)
            if isinstance(event, StepDone) and _one_phase(step, members):
                found.append(Timing(step.middle, (entry.now_ns - start_ns) // step.repeat))
        issued |= {c.id: (entry.now_ns, c) for c in entry.commands if isinstance(c, Step)}
    return found


def _one_phase(step: Step, members: int) -> bool:
    chunks = sum(row.given for row in step.rows)
    return len(step.group) == members and (chunks == 0 or (chunks == len(step.rows) and not step.again))
