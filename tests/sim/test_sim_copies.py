"""`Copies`: lanes take moves in order, links are shared fairly, nothing ends before its bytes are there."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.sim.copies import Copies, Network
from plait.spec.cluster import Link
from plait.spec.errors import UserError
from plait.spec.event import Moved, MoveFailed
from plait.spec.move import Move
from plait.spec.step import Extent, Span
from tests.scale import scaled

GB = 1e9
"""At 1 GB/s and 1 byte a token, a token takes a nanosecond."""


def network(local: float = GB, remote: float = GB, latency_ns: int = 0, layers: int = 1) -> Network:
    return Network(1, Link(local, latency_ns), Link(remote, latency_ns), layers)


def move(id: int, source: int, target: int, count: int = 100) -> Move:
    extents = (Extent(0, count),)
    return Move(id, id, count, Span(source, 0, extents), Span(target, 0, extents))


def answers(copies: Copies) -> list[tuple[int, int]]:
    """(time, move) of everything that is still to be answered."""
    seen = []
    while (at_ns := copies.next_ns) is not None:
        if (event := copies.take(at_ns)) is not None:
            assert isinstance(event, Moved)
            seen.append((at_ns, event.move))
    return seen


def test_a_move_takes_its_bytes_over_its_link():
    copies = Copies(network(latency_ns=7), {})
    copies.begin(move(1, 0, 1, 100), 1000)
    assert answers(copies) == [(1107, 1)]


def test_a_lane_takes_its_moves_in_turn():
    copies = Copies(network(), {})
    for id in (1, 2, 3):
        copies.begin(move(id, id + 10, 0), 0)
    assert answers(copies) == [(100, 1), (200, 2), (300, 3)]


def test_moves_from_one_source_share_its_way_out():
    copies = Copies(network(), {})
    copies.begin(move(1, 0, 1, 100), 0)
    copies.begin(move(2, 0, 2, 50), 0)
    copies.begin(move(3, 5, 6, 100), 0)
    # Half speed each until the shorter is through; a pair that shares nothing is not slowed.
    assert answers(copies) == [(100, 2), (100, 3), (150, 1)]


def test_a_latecomer_slows_the_one_under_way():
    copies = Copies(network(), {})
    copies.begin(move(1, 0, 1, 100), 0)
    copies.begin(move(2, 0, 2, 100), 50)
    assert answers(copies) == [(150, 1), (200, 2)]


def test_between_nodes_all_share_the_nodes_link():
    nodes = {0: 0, 1: 0, 2: 1, 3: 1}
    copies = Copies(network(local=10 * GB), nodes)
    copies.begin(move(1, 0, 2), 0)
    copies.begin(move(2, 1, 3), 0)
    assert answers(copies) == [(200, 1), (200, 2)]
    copies.begin(move(3, 0, 1), 1000)
    assert answers(copies) == [(1010, 3)], "on one node it is ten times as fast"


def test_a_cancelled_move_fails_at_once_and_the_next_one_begins():
    copies = Copies(network(), {})
    copies.begin(move(1, 0, 9), 0)
    copies.begin(move(2, 0, 9), 0)
    copies.cancel(1, 30)
    assert copies.next_ns == 30
    assert copies.take(30) == MoveFailed(1, "cancelled")
    assert answers(copies) == [(130, 2)]
    copies.cancel(1, 140)
    assert copies.next_ns is None, "what is answered stays answered"


def test_losses():
    copies = Copies(network(), {})
    copies.begin(move(1, 0, 9), 0)
    copies.begin(move(2, 5, 9), 0)
    copies.begin(move(3, 5, 8), 0)
    copies.lost(8, 10)
    copies.lost(0, 20)
    assert copies.take(20) == MoveFailed(1, "source lost")
    assert answers(copies) == [(120, 2)]


@pytest.mark.parametrize(
    ("speed", "end"),
    [
        (1.0, 400 + 25),  # the link waits for the layers: the last of 4 is sent after the step
        (0.1, 100 + 1000),  # the layers wait for the link: it is busy from the first one on
    ],
)
def test_a_move_follows_its_step_layer_by_layer(speed: float, end: int):
    copies = Copies(network(local=speed * GB, layers=4), {})
    copies.begin(move(1, 0, 1, 100), 0, follows=(0, 400))
    assert answers(copies) == [(max(end, 400 + round(25 / speed)), 1)]


def test_a_move_in_one_part_waits_for_the_whole_step():
    copies = Copies(network(), {})
    copies.begin(move(1, 0, 1, 100), 0, follows=(0, 400))
    assert answers(copies) == [(500, 1)]


@given(
    st.lists(
        st.tuples(st.integers(0, 500), st.integers(0, 3), st.integers(4, 7), st.integers(1, 300)),
        min_size=1,
        max_size=12,
    )
)
@settings(max_examples=scaled(2000), deadline=None)
def test_no_link_carries_more_than_it_can(begins: list[tuple[int, int, int, int]]):
    """Every move is answered once; none is faster than alone; no link is faster than its bandwidth."""
    copies = Copies(network(), {})
    seen: dict[int, int] = {}
    begins.sort()

    def until(limit_ns: float) -> None:
        while copies.next_ns is not None and copies.next_ns <= limit_ns:
            at_ns = copies.next_ns
            if (event := copies.take(at_ns)) is not None:
                assert event.move not in seen
                seen[event.move] = at_ns

    for id, (at_ns, source, target, count) in enumerate(begins):
        until(at_ns)
        copies.begin(move(id, source, target, count), at_ns)
    until(float("inf"))
    assert len(seen) == len(begins)
    for end in range(8):
        mine = [id for id, (_, source, target, _) in enumerate(begins) if end in (source, target)]
        if mine:
            carried = sum(begins[id][3] for id in mine)
            assert max(seen[id] for id in mine) - begins[mine[0]][0] >= carried - len(mine)
    assert all(seen[id] >= at + count for id, (at, _, _, count) in enumerate(begins))


def test_a_network_without_bandwidth_is_refused():
    with pytest.raises(UserError, match="bandwidth"):
        network(local=0)
