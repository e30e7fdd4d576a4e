"""What members of a group exchange arrives whole and in order, whatever carries it and whoever gives up."""

import random
import threading
from collections.abc import Callable

import pytest
import torch

from plait.kernels import exchange
from plait.worker.config import LinkConfig
from plait.worker.exchange import Exchange, GroupError
from plait.worker.layout import Interval, Shard
from plait.worker.lender import Lender
from tests.scale import scaled, seed
from tests.worker.fabrics import SECRET, Peer

SHARD = Shard(Interval(0, 1), Interval(0, 1))
ROOM_BYTES = 512
CONFIGS = {
    "memory": LinkConfig(room_bytes=ROOM_BYTES),
    "connections": LinkConfig(room_bytes=ROOM_BYTES, ways=()),
}


class End:
    """One member, without a model."""

    def __init__(self, number: int, config: LinkConfig) -> None:
        name = b"%d.1.0" % number
        self.peer = Peer(name.decode(), SHARD, page=1, config=config)
        self.exchange = Exchange(config, SECRET, name, patience_s=30)
        self.lender = Lender(
            self.peer.ways,
            self.peer.store,
            self.peer.progress,
            SECRET,
            name,
            "127.0.0.1",
            self.exchange.attach,
        )
        self.lender.start()

    @property
    def source(self):
        """As the others know it."""
        return type(self.peer.source)(self.peer.name, self.lender.address, SHARD)

    def close(self) -> None:
        """End its threads."""
        self.lender.close()
        self.exchange.close()
        self.peer.close()


def together(jobs: list[Callable[[], object]]) -> list[object]:
    """The results of jobs that run at the same time, or the GroupError that ended one."""
    results: list[object] = [None] * len(jobs)

    def run(at: int) -> None:
        try:
            results[at] = jobs[at]()
        except GroupError as error:
            results[at] = error

    threads = [threading.Thread(target=run, args=(at,)) for at in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive(), "a member waits for ever"
    return results


class Turn:
    """A step: rounds in which members push tensors to each other, then take what was pushed to them."""

    def __init__(self, rng: random.Random, size: int, number: int) -> None:
        self.size, self.number = size, number
        self.rounds = [self._round(rng) for _ in range(rng.randint(1, 4))]
        self.quitter = rng.randrange(size) if rng.random() < 0.3 else None
        """Gives the step up after the first round."""

    def _round(self, rng: random.Random) -> dict[tuple[int, int], list[torch.Tensor]]:
        pairs = [(a, b) for a in range(self.size) for b in range(self.size) if a != b]
        lengths = {pair: [rng.choice((0, 1, 7, 64)) for _ in range(rng.randint(0, 2))] for pair in pairs}
        return {p: [torch.tensor([rng.random() for _ in range(n)]) for n in ns] for p, ns in lengths.items()}

    def bytes_of(self, me: int) -> int:
        """What a member pushes."""
        return sum(x.nbytes for each in self.rounds for (a, _), xs in each.items() if a == me for x in xs)

    def play(self, ends: list[End], me: int) -> list[torch.Tensor]:
        """What this member got, in the order of what was pushed."""
        link, got = ends[me].exchange, []
        link.begin(self.number, [None if i == me else end.source for i, end in enumerate(ends)])
        try:
            for at, each in enumerate(self.rounds):
                if at == 1 and me == self.quitter:
                    raise GroupError("enough")
                wanted = [(a, torch.empty_like(x)) for (a, b), xs in each.items() if b == me for x in xs]
                for (a, b), xs in each.items():
                    for x in xs:
                        if a == me:
                            link.push(b, x)
                link.settle(wanted)
                got += [x for _, x in wanted]
        except GroupError:
            link.abandon()
            raise
        link.end()
        return got

    def expected(self, me: int) -> list[torch.Tensor]:
        """What it should get."""
        return [x for each in self.rounds for (_, b), xs in each.items() if b == me for x in xs]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("carrier", CONFIGS)
def test_what_is_pushed_arrives(carrier):
    if carrier == "memory" and not exchange.available():
        pytest.skip("shared memory needs native kernels")
    rng = random.Random(seed())
    ends = [End(i, CONFIGS[carrier]) for i in range(3)]
    abandoned, number = 0, 0
    try:
        for _ in range(scaled(400)):
            number += rng.randint(1, 3)
            turn = Turn(rng, len(ends), number)
            sent = [end.exchange.sent_bytes for end in ends]
            results = together([lambda me=me, turn=turn: turn.play(ends, me) for me in range(len(ends))])
            quit_early = turn.quitter is not None and len(turn.rounds) > 1
            abandoned += quit_early
            for me, got in enumerate(results):
                if quit_early and isinstance(got, GroupError):
                    continue  # whoever needed nothing more of the one that quit is done all the same
                assert isinstance(got, list), got
                assert all(torch.equal(x, y) for x, y in zip(got, turn.expected(me), strict=True))
                assert ends[me].exchange.sent_bytes - sent[me] == turn.bytes_of(me)
            assert not quit_early or isinstance(results[turn.quitter], GroupError)
    finally:
        for end in ends:
            end.close()
    assert abandoned


def test_a_member_that_is_gone_is_named():
    ends = [End(i, CONFIGS["connections"]) for i in range(2)]
    try:
        ends[0].exchange.layer = 3
        assert together([lambda me=me: Turn(random.Random(1), 2, 0).play(ends, me) for me in range(2)])
        ends[1].close()
        ends[0].exchange.begin(9, [None, ends[1].source])
        with pytest.raises(GroupError, match=r"step 9, in layer 3: instance 1 \(epoch 1, rank 0\) is gone"):
            ends[0].exchange.settle([(1, torch.empty(4))])
    finally:
        ends[0].close()


@pytest.mark.skipif(not exchange.available(), reason="no compiled kernels")
def test_a_link_may_be_made_before_its_reader_has_begun_any_step():
    ends = [End(number, CONFIGS["memory"]) for number in range(2)]
    writer, reader = (end.exchange for end in ends)
    sent, taken = torch.arange(40.0), torch.zeros(40)

    def write() -> None:
        writer.push(1, sent)
        writer.settle()

    try:
        writer.begin(2, [None, ends[1].source])
        writer._outlet(1)
        with reader._attached:
            assert reader._attached.wait_for(lambda: reader._inlets, timeout=30)
        reader.begin(2, [ends[0].source, None])
        assert together([write, lambda: reader.settle([(0, taken)])]) == [None, None]
        assert torch.equal(taken, sent)
    finally:
        for end in ends:
            end.exchange.end()
            end.close()
