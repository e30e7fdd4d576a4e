"""Copies between any two layouts bring every cell once, bit for bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.worker.layout import Box, Interval, Shard, parts, shards
from tests.scale import scaled


@st.composite
def layouts(draw, layers, heads):
    """Shards of a random (tp, pp) that this model can have."""
    tp = draw(st.sampled_from([n for n in (1, 2, 3, 4, 6, 8, 16) if heads % n == 0 or n % heads == 0]))
    return shards(layers, heads, tp, draw(st.integers(1, min(layers, 4))))


@st.composite
def cuts(draw, length):
    """Positions [0, length) dealt out to one to three holders, in intervals."""
    holders = draw(st.integers(1, 3))
    edges = sorted({0, length, *draw(st.lists(st.integers(0, length), max_size=5))})
    owners = [draw(st.integers(0, holders - 1)) for _ in edges[1:]]
    dealt = [[] for _ in range(holders)]
    for owner, first, past in zip(owners, edges, edges[1:], strict=False):
        dealt[owner].append(Interval(first, past))
    return [tuple(own) for own in dealt if own]


def cell(whole_LHT, box):
    """The intervals of a box, as views."""
    layers, heads = (slice(i.first, i.past) for i in (box.layers, box.heads))
    return [whole_LHT[layers, heads, span.first : span.past] for span in box.positions]


@settings(max_examples=max(200, scaled(2000)), deadline=None)
@given(data=st.data(), layers=st.integers(1, 7), heads=st.sampled_from([1, 2, 3, 4, 6, 8]))
def test_any_layout_to_any_layout_is_the_whole_tensor(data, layers, heads):
    length = data.draw(st.integers(1, 20))
    whole_LHT = torch.arange(layers * heads * length).reshape(layers, heads, length) + 1
    ours, theirs = data.draw(layouts(layers, heads)), data.draw(layouts(layers, heads))
    sources = [shard.box(own) for own in data.draw(cuts(length)) for shard in ours]
    memory = []
    for box in sources:
        kept_LHT = torch.zeros_like(whole_LHT)
        for mine, all_of_it in zip(cell(kept_LHT, box), cell(whole_LHT, box), strict=True):
            mine.copy_(all_of_it)
        memory.append(kept_LHT)
    first = data.draw(st.integers(0, length - 1))
    for rank, shard in enumerate(theirs):
        needed = shard.box([Interval(first, length)])
        got_LHT, writes_LHT = torch.zeros_like(whole_LHT), torch.zeros_like(whole_LHT)
        for part in parts(needed, sources, rank):
            for to, seen, from_ in zip(
                cell(got_LHT, part.box),
                cell(writes_LHT, part.box),
                cell(memory[part.source], part.box),
                strict=True,
            ):
                to.copy_(from_)
                seen.add_(1)
        wanted_LHT, once_LHT = torch.zeros_like(whole_LHT), torch.zeros_like(whole_LHT)
        for to, seen, from_ in zip(
            cell(wanted_LHT, needed), cell(once_LHT, needed), cell(whole_LHT, needed), strict=True
        ):
            to.copy_(from_)
            seen.fill_(1)
        assert torch.equal(got_LHT, wanted_LHT)
        assert torch.equal(writes_LHT, once_LHT), "a cell was copied twice, or one that nobody asked for"


def test_heads_on_several_workers_are_taken_from_different_ones():
    sources = [shard.box([Interval(0, 4)]) for shard in shards(1, 2, tp=4)]
    taken = [
        parts(shard.box([Interval(0, 4)]), sources, turn=at) for at, shard in enumerate(shards(1, 2, tp=4))
    ]
    assert [[part.source for part in each] for each in taken] == [[0], [1], [2], [3]]


def test_stages_divide_layers_as_evenly_as_they_can():
    assert [len(shard.layers) for shard in shards(7, 1, pp=3)] == [3, 2, 2]


@pytest.mark.parametrize(("heads", "tp", "pp"), [(3, 2, 1), (4, 6, 1), (2, 1, 3), (2, 0, 1)])
def test_what_cannot_be_divided_is_refused(heads, tp, pp):
    with pytest.raises(ValueError):
        shards(2, heads, tp, pp)


def test_what_nobody_holds_is_an_error():
    needed = Box(Interval(0, 2), Interval(0, 1), (Interval(0, 4),))
    with pytest.raises(ValueError, match="no source holds"):
        parts(needed, [Shard(Interval(0, 1), Interval(0, 1)).box([Interval(0, 4)])])
