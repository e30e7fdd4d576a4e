"""`Pipeline`: executes one rank's program of any valid schedule of any set of models.

    program:  RECEIVE 0.0F1   RUN 0.1F1   RUN 1.0B0   SEND 1.0B0 ...
                     |             `--> Stage ------------'
                   Post

Messages overlap computing; a rank waits only for what its next action needs. Every action is timed.
"""

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from plait.spec.schedule import Action, Deed, Kind, Program, Verb
from plait.training.post import PipelineFault, Post
from plait.training.replicas import Replicas
from plait.training.stage import Feed, Stage

RECALLED = 20
"""Actions that a fault names as the last ones."""


@dataclass(frozen=True, slots=True)
class Ran:
    """One action, as it went; times of the host's monotonic clock."""

    action: Action
    waited_ns: int
    """For what it needed from other ranks, before it began."""
    begin_ns: int
    end_ns: int


class Pipeline:
    """The stages of one rank."""

    def __init__(
        self,
        stages: Mapping[tuple[int, int], Stage],
        depths: Sequence[int],
        post: Post,
        replicas: Mapping[tuple[int, int], Replicas] | None = None,
    ) -> None:
        """
        Args:
            stages: by model and stage.
            depths: stages of each model.
            replicas: of stages whose weights others hold too.
        """
        self.stages, self.depths, self.post = dict(stages), tuple(depths), post
        self.replicas = dict(replicas or {})

    def run(self, program: Program, feeds: Sequence[Feed]) -> list[Ran]:
        """Run a program to its end; gradients are summed up over replicas when it returns.

        Args:
            feeds: by model.

        Raises:
            PipelineFault: another rank is gone or does not answer in time; names the action, the peer and
                the last actions of this rank.
        """
        step = _Step(self, program, feeds)
        try:
            return step.run()
        except PipelineFault as fault:
            last = ", ".join(str(ran.action) for ran in step.ran[-RECALLED:]) or "none"
            raise PipelineFault(f"{fault}; done before: {last}") from fault


class _Step:
    """One run of a program."""

    def __init__(self, pipeline: Pipeline, program: Program, feeds: Sequence[Feed]) -> None:
        self.pipeline, self.program, self.feeds = pipeline, program, feeds
        self.ran: list[Ran] = []
        runs = [deed.action for deed in program if deed.verb is Verb.RUN]
        self.left = Counter((action.model, action.stage) for action in runs)
        self.trained = {action.model for action in runs if action.kind is Kind.B}
        self.split = {action.model for action in runs if action.kind is Kind.W}
        self.results: dict[Action, Tensor] = {}
        """That are to be sent, or are needed on this rank."""
        self.receives = {deed.action for deed in program if deed.verb is Verb.RECEIVE}

    def run(self) -> list[Ran]:
        post = self.pipeline.post
        post.open(self._coming())
        for deed in self.program:
            if deed.verb is Verb.RUN:
                self._run(deed.action)
            elif deed.verb is Verb.SEND:
                post.send(deed, self.results.pop(deed.action))
            else:
                post.pass_by(deed)
        post.close()
        assert not self.results, "results that nobody took"
        for replicas in self.pipeline.replicas.values():
            replicas.finish()
        assert all(stage.idle for stage in self.pipeline.stages.values()), "a backward is missing"
        return self.ran

    def _coming(self) -> Iterable[tuple[Deed, tuple[int, ...]]]:
        for deed in self.program:
            if deed.verb is Verb.RECEIVE:
                yield deed, self.feeds[deed.action.model].shape(deed.action.micro_batch)

    def _run(self, action: Action) -> None:
        asked_ns = time.monotonic_ns()
        before = self._before(action)
        given = None if before is None else self._take(before)
        begin_ns = time.monotonic_ns()
        result = self._compute(action, given)
        if result is not None:
            self.results[action] = result
        self.ran.append(Ran(action, begin_ns - asked_ns, begin_ns, time.monotonic_ns()))
        place = (action.model, action.stage)
        self.left[place] -= 1
        if not self.left[place] and action.model in self.trained and place in self.pipeline.replicas:
            self.pipeline.replicas[place].begin()

    def _compute(self, action: Action, given: Tensor | None) -> Tensor | None:
        stage, feed = self.pipeline.stages[action.model, action.stage], self.feeds[action.model]
        number, late = action.micro_batch, action.model in self.split
        if action.kind is Kind.F:
            train = action.model in self.trained
            return stage.forward(number, given, feed, train=train)
        if action.kind is Kind.B:
            return stage.backward(number, given, feed, late=late)
        stage.weight(number)
        return None

    def _before(self, action: Action) -> Action | None:
        """The action of another stage whose result this one needs."""
        stage, step = action.stage, {Kind.F: -1, Kind.B: 1, Kind.W: 0}[action.kind]
        if not step or not 0 <= stage + step < self.pipeline.depths[action.model]:
            return None
        return Action(action.model, stage + step, action.kind, action.micro_batch)

    def _take(self, before: Action) -> Tensor:
        if before in self.receives:
            return self.pipeline.post.take(before)
        return self.results.pop(before)
