"""The RLHF core with workers on paper: the tail moves, instances are lent, batches are scored."""

from collections import deque

from hypothesis import given, settings
from hypothesis import strategies as st

from plait.rlhf.core import InterStageConfig, RlhfCore
from plait.serving.manager import GlobalManager, ManagerConfig
from plait.spec.cluster import Role
from plait.spec.command import End, Score
from plait.spec.event import Arrived, Moved, Rollout, Scored, StepDone, WorkerUp
from plait.spec.move import Move
from plait.spec.request import EndReason, Request
from plait.spec.step import Step
from tests.serving.audit import audit


class Iteration:
    """Samples of given lengths on instances that answer in turn; what the core said, in order."""

    def __init__(self, lengths: list[int], config: InterStageConfig, instances: int = 4) -> None:
        self.core = RlhfCore(GlobalManager(ManagerConfig(page=4)))
        self.now = 0
        self.work: deque[object] = deque()
        self.said: list[object] = []
        self.done: set[int] = set()
        for instance in range(instances):
            self.send(WorkerUp(instance, 1, 4096))
        self.lengths = lengths
        tail = config.tail(len(lengths))
        self.send(Rollout(tuple(range(len(lengths))), 2, tail.left, tail.kept))
        for request, length in enumerate(lengths):
            self.send(Arrived(Request(request, 5, length)))

    def send(self, event: object) -> None:
        self.now += 1
        for command in self.core.handle(event, self.now):
            self.said.append(command)
            if isinstance(command, Step | Move | Score):
                self.work.append(command)
            elif isinstance(command, End):
                assert command.reason is EndReason.LENGTH
                self.done.add(command.request)
        audit(self.core.manager)

    def run(self) -> None:
        while self.work:
            match self.work.popleft():
                case Step() as step:
                    draws = tuple(int(row.draws) for row in step.rows) + (1,) * len(step.again)
                    self.send(StepDone(step.id, draws))
                case Move() as move:
                    self.send(Moved(move.id))
                case Score() as score:
                    assert score.instance in self.core.lent
                    assert not self.core.manager.seats[score.instance].lives
                    samples = [s for b in score.batches for s in range(b * 2, b * 2 + 2)]
                    known = tuple(5 + self.lengths[s] for s in samples if s < len(self.lengths))
                    assert score.tokens == known
                    for batch in score.batches:
                        members = range(batch * 2, min(batch * 2 + 2, len(self.lengths)))
                        assert self.done.issuperset(members), "a batch is scored before it is finished"
                    self.send(Scored(score.id))

    @property
    def scored(self) -> list[int]:
        return [batch for command in self.said if isinstance(command, Score) for batch in command.batches]


lengths = st.lists(st.integers(1, 60), min_size=1, max_size=24)


@settings(deadline=None)
@given(lengths, st.sampled_from([0.0, 0.2, 0.5, 1.0]), st.integers(1, 3), st.integers(1, 4))
def test_every_batch_is_scored_once_and_instances_come_back(lengths, share, kept, instances):
    iteration = Iteration(lengths, InterStageConfig(share, kept), instances)
    iteration.run()
    assert iteration.done == set(range(len(lengths)))
    assert sorted(iteration.scored) == list(range(-(-len(lengths) // 2)))
    assert not iteration.core.lent
    assert iteration.core.manager.quiet
    roles = [iteration.core.manager.roster.role(i) for i in range(instances)]
    assert roles == [Role.MIXED] * instances


def test_serial_stages_score_when_the_last_sample_is_finished():
    iteration = Iteration([3, 40, 3, 3], InterStageConfig())
    iteration.run()
    ends = [at for at, command in enumerate(iteration.said) if isinstance(command, End)]
    scores = [at for at, command in enumerate(iteration.said) if isinstance(command, Score)]
    assert max(ends) < min(scores)
    assert not any(isinstance(command, Move) for command in iteration.said)


def test_the_tail_moves_together_and_finished_batches_are_scored_meanwhile():
    iteration = Iteration([3, 3, 3, 3, 3, 60, 3, 60], InterStageConfig(tail_share=0.25, kept=1))
    iteration.run()
    moves = [command for command in iteration.said if isinstance(command, Move)]
    assert len({move.target.instance for move in moves}) == 1
    first = next(at for at, command in enumerate(iteration.said) if isinstance(command, Score))
    last = max(at for at, command in enumerate(iteration.said) if isinstance(command, End))
    assert first < last
