"""A manager with workers on paper: steps wait in order until a test answers them, one token a round."""

from collections import deque
from dataclasses import replace

from plait.serving.admission import AdmissionConfig
from plait.serving.batcher import BatcherConfig
from plait.serving.handover import HandoverConfig
from plait.serving.manager import GlobalManager, ManagerConfig
from plait.spec.cluster import Instance, Placement, Role
from plait.spec.command import Command, End, Token, Wake
from plait.spec.event import Arrived, Event, Moved, MoveFailed, StepDone, StepFailed, WorkerLost, WorkerUp
from plait.spec.move import Cancel, Move
from plait.spec.request import EndReason, Request
from plait.spec.step import Step
from tests.serving.audit import audit

ROLES = {"m": Role.MIXED, "p": Role.PREFILL, "d": Role.DECODE}


class Cell:
    """`slots` are those of instances 0, 1, ...; `roles` has a letter for each (m, p or d), m
    without them; settings go to whichever config has them."""

    def __init__(
        self,
        *slots: int,
        page: int = 1,
        retries: int = 2,
        roles: str = "",
        tries: int = 2,
        pp: int = 1,
        **settings: object,
    ) -> None:
        admission, batcher, handover = AdmissionConfig(), BatcherConfig(), HandoverConfig(retries=tries)
        for name, value in settings.items():
            if hasattr(admission, name):
                admission = replace(admission, **{name: value})
            elif hasattr(batcher, name):
                batcher = replace(batcher, **{name: value})
            else:
                handover = replace(handover, **{name: value})
        letters = enumerate(roles or "m" * len(slots))
        placement = Placement(tuple(Instance(i, ROLES[role], pp=pp) for i, role in letters))
        self.manager = GlobalManager(
            ManagerConfig(
                page=page,
                retries=retries,
                admission=admission,
                batcher=batcher,
                handover=handover,
                placement=placement,
            )
        )
        self.now = 0
        self.inbox: dict[int, deque[Step]] = {}
        self.moves: dict[int, Move] = {}
        """Moves without an answer, by id."""
        self.cancelled: list[int] = []
        self.ends: dict[int, End] = {}
        self.drawn: dict[int, int] = {}
        self.wakes: list[int] = []
        self.started: list[int] = []
        """Requests in the order in which an instance first saw them."""
        self._requests = 0
        self._counts: dict[int, int] = {}
        """Of the step that was answered last."""
        for instance, count in enumerate(slots):
            self.up(instance, count)

    def send(self, event: Event, now: int | None = None) -> list[Command]:
        """One event; time goes on by 1 ns unless told."""
        self.now = self.now + 1 if now is None else now
        out = self.manager.handle(event, self.now)
        for command in out:
            match command:
                case Step(group=(instance,)):
                    self.inbox[instance].append(command)
                    self.started += command.opened
                case Move():
                    self.moves[command.id] = command
                case Cancel():
                    self.cancelled.append(command.move)
                case End():
                    assert command.request not in self.ends, "ended twice"
                    self.ends[command.request] = command
                case Token():
                    for request in command.requests:
                        self.drawn[request] = self.drawn.get(request, 0) + self._counts[request]
                case Wake():
                    self.wakes.append(command.at_ns)
        audit(self.manager)
        return out

    def up(self, instance: int, slots: int, epoch: int = 1) -> None:
        self.inbox[instance] = deque()
        self.send(WorkerUp(instance, epoch, slots))

    def lose(self, instance: int, epoch: int = 1) -> None:
        self.inbox[instance].clear()
        self.moves = {id: move for id, move in self.moves.items() if move.target.instance != instance}
        self.send(WorkerLost(instance, epoch))

    def moved(self, id: int | None = None) -> Move:
        """A move succeeds: this one, or the oldest."""
        move = self.moves.pop(min(self.moves) if id is None else id)
        self.send(Moved(move.id))
        return move

    def break_off(self, id: int | None = None) -> Move:
        """A move fails: this one, or the oldest."""
        move = self.moves.pop(min(self.moves) if id is None else id)
        self.send(MoveFailed(move.id, "made to fail"))
        return move

    def arrive(
        self,
        prompt: int,
        max_tokens: int,
        hashes: tuple[int, ...] = (),
        deadline_ns: int | None = None,
        priority: int = 0,
    ) -> int:
        """A new request; returns its id: 0, 1, ... in the order of calls."""
        request = Request(self._requests, prompt, max_tokens, hashes, deadline_ns, priority=priority)
        self._requests += 1
        self.send(Arrived(request))
        return request.id

    def answer(self, instance: int = 0, stopped: tuple[int, ...] = ()) -> Step:
        """The oldest step of an instance succeeds; rows that stopped did so in its last round."""
        step = self.inbox[instance].popleft()
        tokens = (*(row.draws * step.repeat for row in step.rows), *(step.repeat for _ in step.again))
        self._counts = dict(zip(step.requests, tokens, strict=True))
        self.send(StepDone(step.id, tokens, stopped))
        return step

    def fail(self, instance: int = 0) -> Step:
        """The oldest step of an instance fails."""
        step = self.inbox[instance].popleft()
        self.send(StepFailed(step.id, "made to fail"))
        return step

    def run(self, limit: int = 10_000) -> int:
        """Answer steps, instances in turn, and moves until none is left; returns how many steps."""
        count = 0
        while any(self.inbox.values()) or self.moves:
            if self.moves:
                self.moved()
            for instance, steps in self.inbox.items():
                if steps:
                    self.answer(instance)
                    count += 1
            assert count < limit, "no end in sight"
        return count

    def reason(self, request: int) -> EndReason | None:
        """How a request ended; None: it has not."""
        return self.ends[request].reason if request in self.ends else None

    def seated(self, instance: int = 0) -> list[int]:
        """Requests on an instance, in the order in which they came."""
        return list(self.manager.seats[instance].lives)

    def waiting(self) -> list[int]:
        """Requests in the queue, in its order."""
        return [live.id for live in self.manager.admission]
