"""Moves over real connections: every layout, shared memory and sockets, faults on the way."""

import socket
import struct
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from plait.kernels import transfer
from plait.worker.channel import Channel, LinkError, Open, accept, connect
from plait.worker.config import LinkConfig, Way
from plait.worker.layout import Interval, Shard, shards
from plait.worker.ring import Ring
from plait.worker.wire import Pulled, PullFault
from tests.scale import scaled
from tests.worker.fabrics import SECRET, SLOTS, Peer, head_bytes, lacking, pages, peers, pull

WHOLE = Shard(Interval(0, 3), Interval(0, 2))
TYPES = [torch.float32, torch.bfloat16, torch.int8]
USABLE = [way for way in Way if not lacking(way)]


@pytest.fixture(params=list(Way))
def way(request):
    """Every way that parts may travel."""
    if reason := lacking(request.param):
        pytest.skip(reason)
    return request.param


def written(peer, rng, slots_T, whole_LHX):
    """Put a peer's part of a whole tensor into its slots."""
    layers, heads = (slice(i.first, i.past) for i in (peer.shard.layers, peer.shard.heads))
    peer.wire(slots_T, write=np.ascontiguousarray(whole_LHX[layers, heads]).reshape(-1))


@pytest.mark.parametrize("case", range(max(50, scaled(400))))
def test_any_layout_to_any_layout_over_links(case):
    rng = np.random.default_rng(case)
    layers, heads = int(rng.integers(1, 5)), int(rng.choice([1, 2, 4]))
    plans = []
    for _ in range(2):
        fits = [tp for tp in (1, 2, 4, 8) if heads % tp == 0 or tp % heads == 0]
        plans.append(shards(layers, heads, int(rng.choice(fits)), int(rng.integers(1, min(layers, 3) + 1))))
    page_here, page_there = (int(rng.choice([1, 4, 16, 32])) for _ in range(2))
    dtype = TYPES[case % 3]
    ways = (USABLE[case // len(TYPES) % len(USABLE)],)
    config = LinkConfig(part_bytes=int(rng.choice([512, 4096, 1 << 20])), ways=ways)
    here = [Peer(f"0.{r}", shard, page_here, dtype, config) for r, shard in enumerate(plans[0])]
    there = [Peer(f"1.{r}", shard, page_there, dtype, config) for r, shard in enumerate(plans[1])]
    count = int(rng.integers(1, 100))
    (from_T, from_), (to_T, to) = pages(rng, page_here, count), pages(rng, page_there, count)
    whole_LHX = rng.integers(0, 120, (layers, heads, head_bytes(here[0].pool, count))).astype(np.uint8)
    with peers(*here, *there):
        for peer in here:
            written(peer, rng, from_T[:count], whole_LHX)
        for rank, peer in enumerate(there):
            peer.lane.pull(pull(7, count, from_, to, [source.source for source in here], rank))
        for peer in there:
            answer = peer.answer()
            assert isinstance(answer, Pulled), answer
            assert {link.way for link in peer.lane._links.values()} == set(ways)
            mine = (slice(i.first, i.past) for i in (peer.shard.layers, peer.shard.heads))
            assert np.array_equal(peer.wire(to_T[:count]), whole_LHX[tuple(mine)])
            others = np.setdiff1d(np.arange(SLOTS), to_T).astype(np.int32)
            assert not len(others) or not peer.wire(others).any(), "a slot of somebody else was written"


def pair(config=None, count=100, page=16):
    """Two whole peers, the slots of a move from the first to the second, and what should arrive."""
    rng = np.random.default_rng(0)
    here, there = (Peer(name, WHOLE, page, config=config) for name in ("0.1", "1.1"))
    (from_T, from_), (to_T, to) = pages(rng, page, count), pages(rng, page, count)
    whole_LHX = rng.integers(0, 120, (3, 2, head_bytes(here.pool, count))).astype(np.uint8)
    written(here, rng, from_T[:count], whole_LHX)

    def order(id, after=()):
        return pull(id, count, from_, to, [here.source], after=after)

    return here, there, order, lambda: np.array_equal(there.wire(to_T[:count]), whole_LHX)


def test_links_are_kept_and_their_memory_has_no_name():
    before = set(Path("/dev/shm").glob("plait-*")) if Path("/dev/shm").is_dir() else set()
    here, there, order, arrived = pair()
    with peers(here, there):
        for id in range(3):
            there.lane.pull(order(id))
            assert isinstance(there.answer(), Pulled)
        assert arrived()
        assert list(there.lane._links) == [b"0.1"]
        if Way.SHARED in USABLE:
            assert there.lane._links[b"0.1"].way is Way.SHARED
            assert set(Path("/dev/shm").glob("plait-*")) <= before


@pytest.mark.skipif(Way.SHARED not in USABLE, reason=lacking(Way.SHARED))
def test_shared_memory_has_no_name_even_before_its_source_has_reached_it():
    """Its maker may be killed at any moment."""
    before = set(Path("/dev/shm").iterdir())
    ring = Ring.make(2, 4096)
    assert set(Path("/dev/shm").iterdir()) <= before
    there = Ring.reach(ring.where, 2, 4096)
    there.room(1)[:3] = 7
    assert list(ring.room(1)[:4]) == [7, 7, 7, 0]
    ring.settled()
    assert Ring.reach(ring.where, 2, 4096) is None, "the way to it is closed"


@pytest.mark.skipif(Way.SHARED not in USABLE, reason=lacking(Way.SHARED))
def test_what_is_not_a_ring_of_ours_is_not_reached(tmp_path):
    ring = Ring.make(1, 4096)
    pid, descriptor, name = ring.where.decode().split()
    with (tmp_path / "file").open("wb+") as file:
        file.truncate(4096)
        wheres = (
            f"{pid} {file.fileno()} {name}",  # a file
            f"{pid} {descriptor} plait-{'0' * 32}",  # another one's memory
            f"{pid} 99999999 {name}",
            f"1/../{pid} {descriptor} {name}",
            f"{pid} {descriptor} {name} ",
            "\udcff",
            "",
        )
        for where in wheres:
            assert Ring.reach(where.encode("utf-8", "surrogateescape"), 1, 4096) is None, where
    assert Ring.reach(ring.where, 2, 4096) is None, "of another size"
    assert Ring.reach(ring.where, -1, -4096) is None
    assert Ring.reach(ring.where, 1, 4096) is not None
    ring.settled()


def test_damaged_parts_are_asked_for_again(monkeypatch, way):
    here, there, order, arrived = pair(LinkConfig(part_bytes=4096, ways=(way,), retries=2))
    real, damages = transfer.checksum, [3]

    def sums(wire):
        """The first few sums that are taken are wrong, at whichever end."""
        damages[0] -= 1
        first, second = real(wire)
        return (first, second ^ 1) if damages[0] == 1 else (first, second)

    monkeypatch.setattr(transfer, "checksum", sums)
    with peers(here, there):
        there.lane.pull(order(1))
        assert isinstance(there.answer(), Pulled)
        assert damages[0] < 1
        assert arrived()


def test_parts_that_stay_damaged_fail_the_move(monkeypatch, way):
    here, there, order, arrived = pair(LinkConfig(part_bytes=4096, ways=(way,)))
    real = transfer.checksum
    ours = iter(range(10**6))
    monkeypatch.setattr(transfer, "checksum", lambda wire: (real(wire)[0], next(ours)))
    with peers(here, there):
        there.lane.pull(order(1))
        answer = there.answer()
        assert isinstance(answer, PullFault)
        assert "checksum" in answer.reason
        monkeypatch.setattr(transfer, "checksum", real)
        there.lane.pull(order(2))
        assert isinstance(there.answer(), Pulled), "the same slots may be asked for again"
        assert arrived()


def test_a_source_that_goes_fails_the_move_and_its_successor_serves_the_next(way):
    config = LinkConfig(part_bytes=512, bytes_per_s=2000, patience_s=5, ways=(way,))
    here, there, order, arrived = pair(config)
    with peers(here, there):
        there.lane.pull(order(1))
        here.lender.close()
        assert isinstance(there.answer(), PullFault)
        there.lane.pull(order(2))
        assert "connect" in there.answer().reason
    assert not arrived()


def test_a_dropped_move_is_answered_soon_and_once(way):
    here, there, order, _ = pair(LinkConfig(part_bytes=512, bytes_per_s=100, ways=(way,)))
    with peers(here, there):
        there.lane.pull(order(1))
        there.lane.pull(order(2))
        there.lane.drop(2, "cancelled")
        assert there.answer() == PullFault(2, "cancelled"), "one that waits is answered at once"
        there.lane.drop(1, "the source is lost")
        assert there.answer() == PullFault(1, "the source is lost")
        there.lane.drop(1, "again")
    assert there.answers.empty()


def test_a_copy_follows_the_step_that_writes_it_layer_by_layer(way):
    here, there, order, arrived = pair(LinkConfig(part_bytes=4096, ways=(way,)))
    with peers(here, there):
        here.progress.begin(5)
        here.progress.stored(1)
        there.lane.pull(order(9, after=(5,)))
        assert there.answers.empty()
        for layers in (2, 3):
            here.progress.stored(layers)
        assert there.answers.empty(), "all is there, but the step may still fail"
        here.progress.end(5)
        assert isinstance(there.answer(), Pulled)
        assert arrived()
        here.progress.begin(6)
        there.lane.pull(order(10, after=(6,)))
        here.progress.stored(3)
        here.progress.end(6, failed=True)
        assert "step 6 failed" in there.answer().reason


def test_a_link_that_nobody_uses_is_let_go_and_made_anew(way):
    here, there, order, arrived = pair(LinkConfig(part_bytes=4096, lease_s=0.05, ways=(way,)))
    with peers(here, there):
        there.lane.pull(order(1))
        assert isinstance(there.answer(), Pulled)
        link = there.lane._links[b"0.1"]
        assert link._channel.ready(30), "the source is gone"
        there.lane.pull(order(2))
        assert isinstance(there.answer(), Pulled)
        assert there.lane._links[b"0.1"] is not link
        assert arrived()


def test_memory_that_a_source_may_write_to_is_kept_until_it_has_parted():
    """The source of a dropped move waits for a step, then writes; only after that is the memory free."""
    if reason := lacking(Way.NIXL):
        pytest.skip(reason)
    here, there, order, arrived = pair(LinkConfig(part_bytes=4096, ways=(Way.NIXL,)))
    with peers(here, there):
        here.progress.begin(5)
        there.lane.pull(order(1, after=(5,)))
        until(lambda: b"0.1" in there.lane._links)
        link = there.lane._links[b"0.1"]
        until(lambda: link._owed)
        room = link._landing._room
        room[:] = 0
        there.lane.drop(1, "cancelled")
        assert there.answer() == PullFault(1, "cancelled")
        assert there.ways.parting
        assert not room.any()
        here.progress.stored(3)
        here.progress.end(5)
        until(lambda: not there.ways.parting)
        assert room.any(), "it was written to after the move had been answered"
        assert not there.ways._agent._kept
        there.lane.pull(order(2))
        assert isinstance(there.answer(), Pulled)
        assert arrived()


def test_the_first_way_that_reaches_is_taken():
    ours, theirs = (Way.SHARED, Way.NIXL), (Way.NIXL,)
    here, there, order, arrived = pair(LinkConfig(ways=theirs))
    there.ways.config = LinkConfig(ways=ours)
    with peers(here, there):
        there.lane.pull(order(1))
        assert isinstance(there.answer(), Pulled)
        assert there.lane._links[b"0.1"].way is (Way.FRAMES if lacking(Way.NIXL) else Way.NIXL)
        assert arrived()


def test_who_keeps_another_type_is_refused():
    here, there = Peer("0.1", WHOLE, 16, torch.bfloat16), Peer("1.1", WHOLE, 16)
    rng = np.random.default_rng(0)
    with peers(here, there):
        there.lane.pull(pull(1, 5, pages(rng, 16, 5)[1], pages(rng, 16, 5)[1], [here.source]))
        assert "bfloat16" in there.answer().reason


def test_slots_and_layers_that_are_not_there_are_denied():
    here, there, order, _ = pair()
    with peers(here, there):
        bad = order(1).move
        wrong = bad.source.__class__(
            0, 0, tuple(e.__class__(e.slot + SLOTS, e.count) for e in bad.source.extents)
        )
        there.lane.pull(replace(order(1), move=replace(bad, source=wrong)))
        assert "does not have" in there.answer().reason


GREETING = Open("f", "e", Way.FRAMES, b"", 1, 1)


def until(holds):
    """Look again and again: what is waited for is in other threads."""
    while not holds():
        time.sleep(0.001)


def two_ends(secret=SECRET):
    """Both channels of one connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        client = socket.create_connection(server.getsockname())
        client.close()
        server.accept()[0].close()

        made = []
        thread = threading.Thread(target=lambda: made.append(connect(address, secret, b"1.1", b"0.1", 5)))
        thread.start()
        sock, _ = server.accept()
        source = accept(sock, SECRET, b"0.1", 5)
        thread.join()
        return made[0], source


def test_who_lacks_the_secret_is_not_heard():
    target, source = two_ends(b"another secret of sixteen")
    target.send(GREETING)
    with pytest.raises(LinkError, match="not signed"):
        source.receive(5)
    target.close()
    source.close()


def test_frames_cannot_be_repeated_or_sent_back():
    target, source = two_ends()
    target.send(GREETING, np.arange(5, dtype=np.uint8))
    letter, payload = source.receive(5)
    assert letter == GREETING
    assert payload.tolist() == [0, 1, 2, 3, 4]
    target._sent = 0
    target.send(GREETING)
    with pytest.raises(LinkError, match="not the next one"):
        source.receive(5)
    source._sent = 0
    mirrored = Channel(source._socket, "itself", source._keys[1], source._keys[0])
    mirrored.send(GREETING)
    with pytest.raises(LinkError, match="not signed"):
        target.receive(5)
    target.close()
    source.close()


def test_lengths_are_bounded_before_anything_is_read():
    target, source = two_ends()
    target._socket.sendall(struct.pack(">II", 1 << 31, 0))
    with pytest.raises(LinkError, match="frame of"):
        source.receive(5)
    target.close()
    source.close()


def test_a_silent_peer_is_given_up():
    target, source = two_ends()
    with pytest.raises(LinkError, match="said nothing"):
        target.ready(0.1)
    source.close()
    assert target.ready(5), "who is gone can be heard"
    with pytest.raises(LinkError, match="gone"):
        target.receive(5)
    target.close()
