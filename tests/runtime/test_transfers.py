"""Each move is answered once, unless its target is lost: whatever happens in between, in any order."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from plait.runtime.transfers import Transfers
from plait.spec.event import Moved, MoveFailed
from plait.spec.move import Move
from plait.spec.step import Extent, Span
from plait.worker.layout import Interval, Shard
from plait.worker.wire import Drop, Pull, Pulled, PullFault, Source

SHARD = Shard(Interval(0, 1), Interval(0, 1))


def move(id, source, target):
    return Move(id, id, 1, Span(source, 0, (Extent(0, 1),)), Span(target, 0, (Extent(0, 1),)))


def source(instance, epoch=1):
    return Source(b"%d.%d" % (instance, epoch), "127.0.0.1:1", SHARD)


def test_a_move_from_a_lost_source_is_never_sent():
    sent = []
    failed = Transfers(lambda *message: sent.append(message)).begin(move(1, 0, 1), None)
    assert isinstance(failed, MoveFailed)
    assert not sent


def test_a_lost_source_is_told_to_the_target_which_may_have_everything():
    sent = []
    transfers = Transfers(lambda *message: sent.append(message))
    assert transfers.begin(move(1, 0, 1), source(0)) is None
    transfers.lost(0)
    assert sent == [(1, Pull(move(1, 0, 1), (source(0),))), (1, Drop(1, "the source is lost"))]
    assert transfers.answered(1, Pulled(1, 0, 0, 0)) == Moved(1)
    transfers.cancel(1)
    assert len(sent) == 2, "it was answered"


class Lives(RuleBasedStateMachine):
    """Three instances on paper. A target answers what it was sent, or is lost with it."""

    def __init__(self):
        super().__init__()
        self.transfers = Transfers(self.send)
        self.inbox = {instance: [] for instance in range(3)}
        """Moves that a target has not answered."""
        self.flying = {}
        """Move -> its target."""
        self.ids = 0

    def send(self, instance, message):
        if isinstance(message, Pull):
            self.inbox[instance].append(message.move.id)
        else:
            assert self.flying[message.move] == instance, "a drop for somebody else's move"

    @rule(here=st.integers(0, 2), there=st.integers(0, 2))
    def begin(self, here, there):
        if here != there:
            self.ids += 1
            self.flying[self.ids] = there
            assert self.transfers.begin(move(self.ids, here, there), source(here)) is None

    @rule(instance=st.integers(0, 2), good=st.booleans(), late=st.booleans())
    def answer(self, instance, good, late):
        if self.inbox[instance]:
            id = self.inbox[instance].pop(0)
            message = Pulled(id, 0, 0, 0) if good else PullFault(id, "no")
            assert self.transfers.answered((instance + 1) % 3, message) is None, "another one answers"
            assert self.transfers.answered(instance, message) == (Moved(id) if good else MoveFailed(id, "no"))
            if late:
                assert self.transfers.answered(instance, message) is None
            del self.flying[id]

    @rule(instance=st.integers(0, 2))
    def lose(self, instance):
        gone = self.inbox[instance]
        self.inbox[instance] = []
        self.flying = {id: target for id, target in self.flying.items() if target != instance}
        self.transfers.lost(instance)
        for id in gone:
            assert self.transfers.answered(instance, Pulled(id, 0, 0, 0)) is None

    @rule(data=st.data())
    def cancel(self, data):
        self.transfers.cancel(data.draw(st.integers(0, self.ids + 1)))


TestLives = Lives.TestCase
