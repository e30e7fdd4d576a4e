"""Each move is answered once, unless its target is lost: whatever happens in between, in any order.

A target is several workers, which answer by themselves; the move's answer comes with the last of theirs.
"""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from plait.runtime.transfers import Transfers
from plait.spec.event import Moved, MoveFailed
from plait.spec.move import Move
from plait.spec.step import Extent, Span
from plait.worker.layout import shards
from plait.worker.wire import Drop, Pull, Pulled, PullFault, Source

SIZES = (1, 2, 3)
"""Workers of each of three instances."""


def move(id, source, target):
    return Move(id, id, 1, Span(source, 0, (Extent(0, 1),)), Span(target, 0, (Extent(0, 1),)))


def workers(instance):
    """The identities of an instance's workers."""
    return [b"%d.1.%d" % (instance, rank) for rank in range(SIZES[instance])]


def sources(instance):
    """As the targets of its moves know them: stages of six layers."""
    held = shards(6, 1, pp=SIZES[instance])
    named = zip(workers(instance), held, strict=True)
    return tuple(Source(identity, "127.0.0.1:1", shard) for identity, shard in named)


def recorded():
    """Transfers, and what they send."""
    sent = []
    return Transfers(lambda *message: sent.append(message)), sent


def test_a_move_from_a_lost_source_is_never_sent():
    transfers, sent = recorded()
    assert isinstance(transfers.begin(move(1, 0, 1), workers(1), ()), MoveFailed)
    assert not sent


def test_every_worker_of_the_target_pulls_from_all_of_the_source_in_turn():
    transfers, sent = recorded()
    assert transfers.begin(move(1, 1, 2), workers(2), sources(1)) is None
    assert sent == [
        (identity, Pull(move(1, 1, 2), sources(1), turn)) for turn, identity in enumerate(workers(2))
    ]


def test_a_lost_source_is_told_to_those_who_still_pull_and_they_may_have_everything():
    transfers, sent = recorded()
    first, second = workers(1)
    transfers.begin(move(1, 0, 1), workers(1), sources(0))
    assert transfers.answered(second, Pulled(1, 0, 0, 0)) is None
    sent.clear()
    transfers.lost(0)
    assert sent == [(first, Drop(1, "the source is lost"))]
    assert transfers.answered(first, Pulled(1, 0, 0, 0)) == Moved(1)
    transfers.cancel(1)
    assert len(sent) == 1, "it was answered"


def test_a_move_fails_with_its_first_fault_once_nobody_writes_any_more():
    transfers, sent = recorded()
    first, second, third = workers(2)
    transfers.begin(move(1, 0, 2), workers(2), sources(0))
    sent.clear()
    assert transfers.answered(second, PullFault(1, "no room")) is None
    assert sent == [
        (first, Drop(1, "another part of it failed")),
        (third, Drop(1, "another part of it failed")),
    ]
    assert transfers.answered(first, PullFault(1, "another part of it failed")) is None
    assert transfers.answered(third, Pulled(1, 0, 0, 0)) == MoveFailed(1, "no room")


class Lives(RuleBasedStateMachine):
    """Three instances on paper. A worker answers what it was sent, or is lost with its instance."""

    def __init__(self):
        super().__init__()
        self.transfers = Transfers(self.send)
        self.inbox = {identity: [] for instance in range(3) for identity in workers(instance)}
        """Moves that a worker has not answered."""
        self.targets = {}
        """Move without an answer -> its target."""
        self.faults = {}
        """Move -> why the first of its workers failed."""
        self.begun = 0

    def send(self, identity, message):
        if isinstance(message, Pull):
            self.inbox[identity].append(message.move.id)
        else:
            assert message.move in self.inbox[identity], "a drop for what was answered, or somebody else's"

    def owing(self, id):
        """Workers that have not answered a move."""
        return [identity for identity, moves in self.inbox.items() if id in moves]

    @rule(here=st.integers(0, 2), there=st.integers(0, 2))
    def begin(self, here, there):
        if here != there:
            self.begun += 1
            self.targets[self.begun] = there
            order = move(self.begun, here, there)
            assert self.transfers.begin(order, workers(there), sources(here)) is None

    @rule(data=st.data(), good=st.booleans(), late=st.booleans())
    def answer(self, data, good, late):
        """Any worker with any of its moves."""
        open_ = [(identity, id) for identity, moves in self.inbox.items() for id in moves]
        if not open_:
            return
        identity, id = data.draw(st.sampled_from(open_))
        self.inbox[identity].remove(id)
        reason = f"{identity} fails"
        message = Pulled(id, 0, 0, 0) if good else PullFault(id, reason)
        stranger = workers((self.targets[id] + 1) % 3)[0]
        assert self.transfers.answered(stranger, message) is None, "another one answers"
        if not good:
            self.faults.setdefault(id, reason)
        answer = self.transfers.answered(identity, message)
        if self.owing(id):
            assert answer is None, "the others still write"
        else:
            fault = self.faults.get(id)
            assert answer == (Moved(id) if fault is None else MoveFailed(id, fault))
            del self.targets[id]
        if late:
            assert self.transfers.answered(identity, message) is None

    @rule(instance=st.integers(0, 2))
    def lose(self, instance):
        gone = {identity: self.inbox[identity] for identity in workers(instance)}
        self.inbox.update({identity: [] for identity in gone})
        self.targets = {id: target for id, target in self.targets.items() if target != instance}
        self.transfers.lost(instance)
        for identity, moves in gone.items():
            for id in moves:
                assert self.transfers.answered(identity, Pulled(id, 0, 0, 0)) is None

    @rule(data=st.data())
    def cancel(self, data):
        self.transfers.cancel(data.draw(st.integers(0, self.begun + 1)))

    @invariant()
    def every_move_without_an_answer_is_owed_by_somebody(self):
        assert all(self.owing(id) for id in self.targets)


TestLives = Lives.TestCase
