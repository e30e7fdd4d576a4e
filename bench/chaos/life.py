"""`Life`: the stages that requests pass, read off the calls of a core, in either world."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from plait.spec.command import Command, End, Token
from plait.spec.event import Arrived, Event, StepDone
from plait.spec.move import Move
from plait.spec.step import Step


class Stage(StrEnum):
    """Where a request is."""

    QUEUED = "queued"
    PREFILL = "prefill"
    """The first step with tokens of its prompt."""
    CHUNK = "chunk"
    """A later one."""
    GROUP = "group step"
    RETENTION = "retention"
    """Members of a group keep parts of it."""
    WAITING = "waiting to move"
    MOVING = "moving"
    DECODE = "decode"


@dataclass(frozen=True, slots=True)
class Moment:
    """A request enters a stage."""

    stage: Stage
    request: int
    instances: tuple[int, ...] = ()
    """Who has to do with it; none yet for one in the queue."""
    work: int = -1
    """Id of its step or move; -1: there is none."""


class Life:
    """Keeps for each step in flight whose prompts it completes."""

    def __init__(self, parted: bool) -> None:
        """`parted`: requests decode elsewhere than where their prompts are computed."""
        self._parted = parted
        self._completes: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        """Step -> its group, and the requests whose prompts it completes."""

    def moments(self, event: Event, commands: Sequence[Command]) -> list[Moment]:
        """What begins with a call of the core."""
        found: list[Moment] = []
        ended = {each.request for each in commands if isinstance(each, End)}
        if isinstance(event, Arrived) and event.request.id not in ended:
            found.append(Moment(Stage.QUEUED, event.request.id))
        if isinstance(event, StepDone) and event.step in self._completes:
            found += self._waiting(event, commands, ended)
        for command in commands:
            if isinstance(command, Step):
                found += self._stepped(command)
            elif isinstance(command, Move):
                ends = (command.source.instance, command.target.instance)
                found.append(Moment(Stage.MOVING, command.request, ends, command.id))
        return found

    def _waiting(self, event: StepDone, commands: Sequence[Command], ended: set[int]) -> list[Moment]:
        group, requests = self._completes.pop(event.step)
        drawn = {request for each in commands if isinstance(each, Token) for request in each.requests}
        gone = ended | {each.request for each in commands if isinstance(each, Move)}
        left = (request for request in requests if request in drawn and request not in gone)
        return [Moment(Stage.WAITING, request, group) for request in left]

    def _stepped(self, step: Step) -> list[Moment]:
        found: list[Moment] = []
        for row in step.rows:
            stage = Stage.DECODE
            if row.given:
                stage = Stage.PREFILL if row.request in step.opened else Stage.CHUNK
            found.append(Moment(stage, row.request, step.group, step.id))
            if len(step.group) > 1:
                found.append(Moment(Stage.GROUP, row.request, step.group, step.id))
            if row.given and row.keep:
                keepers = tuple(dict.fromkeys(keep.instance for keep in row.keep))
                found.append(Moment(Stage.RETENTION, row.request, keepers, step.id))
        found += [Moment(Stage.DECODE, request, step.group, step.id) for request in step.again[:1]]
        completed = tuple(row.request for row in step.rows if row.given and row.draws)
        if self._parted and completed:
            self._completes[step.id] = step.group, completed
        return found
