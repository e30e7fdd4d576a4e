"""Spaces: three views of a policy, ties, neighbours."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.compression.space import Space
from plait.spec.errors import UserError
from plait.spec.policy import Choice, CompressionPolicy, Knob, Slot, Tie, Unit

PRUNE, BITS = (0.75, 0.5, 0.25, 0.0), (2.0, 4.0, 8.0, 16.0)


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    """Up to six units with random knobs, levels and ties."""
    units = []
    for number in range(draw(st.integers(1, 6))):
        levels = {
            knob: draw(st.lists(st.sampled_from(all_), unique=True, max_size=3))
            for knob, all_ in zip(Knob, (PRUNE, BITS, BITS, BITS), strict=True)
        }
        told = {
            knob.value: tuple(sorted({*some, *all_[-1:]}, reverse=knob is Knob.PRUNE))
            for (knob, some), all_ in zip(levels.items(), (PRUNE, BITS, BITS, BITS), strict=True)
        }
        units.append(Unit(f"u{number}", **told))
    names = draw(st.lists(st.sampled_from([unit.name for unit in units]), unique=True, min_size=1))
    knob = draw(st.sampled_from(list(Knob)))
    return Space(units, [Tie(tuple(Slot(name, knob) for name in names))])


@settings(deadline=None)
@given(spaces(), st.integers(0, 2**32 - 1))
def test_views_agree(space: Space, seed: int):
    rng = np.random.default_rng(seed)
    for index_D in space.sample(rng, 5):
        policy = space.decode(index_D)
        assert (space.encode(policy) == index_D).all()
        assert CompressionPolicy.parse(policy.json()) == policy
        z_D = space.z_of(index_D[None])[0]
        assert (space.index_of(z_D[None])[0] == index_D).all()
        assert (z_D >= 0).all()
        assert (z_D <= 1).all()
        for tie in space.ties:
            assert len({policy.choice(slot.unit).value(slot.knob) for slot in tie.slots}) == 1


@settings(deadline=None)
@given(spaces(), st.integers(0, 2**32 - 1))
def test_neighbours_differ_in_one_gene_by_one_level(space: Space, seed: int):
    (index_D,) = space.sample(np.random.default_rng(seed), 1)
    low_ND, high_ND = space.neighbours(index_D), space.neighbours(index_D, up=True)
    assert len(low_ND) == (index_D > 0).sum()
    assert len(high_ND) == (index_D < space.count_D - 1).sum()
    for near_ND, step in ((low_ND, -1), (high_ND, 1)):
        assert ((near_ND - index_D).sum(-1) == step).all()
        assert ((near_ND != index_D).sum(-1) == 1).all()


def test_levels_run_from_most_compressed_to_least():
    with pytest.raises(UserError, match=r"u\.prune: order the levels"):
        Unit("u", prune=(0.0, 0.5))
    with pytest.raises(UserError, match=r"u\.act_bits: order the levels"):
        Unit("u", act_bits=(8.0, 4.0))
    with pytest.raises(UserError, match="ratios in"):
        Unit("u", prune=(1.0, 0.5))


def test_tied_slots_take_the_levels_they_share():
    units = [
        Unit("a", prune=(0.75, 0.5, 0.0)),
        Unit("b", prune=(0.5, 0.25, 0.0)),
        Unit("c", prune=(0.75, 0.0)),
    ]
    slots = tuple(Slot(unit.name, Knob.PRUNE) for unit in units)
    (gene,) = Space(units[:2], [Tie(slots[:2])]).genes
    assert gene.levels == (0.5, 0.0)
    fixed = Space(units, [Tie(slots[:2]), Tie(slots[1:])])
    assert (len(fixed), fixed.fixed) == (0, dict.fromkeys(slots, 0.0))
    with pytest.raises(UserError, match="share no level"):
        Space([Unit("a", prune=(0.5, 0.0)), Unit("b", prune=(0.75, 0.25))], [Tie(slots[:2])])
    with pytest.raises(UserError, match="cannot be chosen"):
        Space(units[:1], [Tie(slots[:2])])


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "no JSON"),
        ('{"v": 2, "units": {}}', "write it again"),
        ('{"v": 1, "units": {"a": {"rank": 4}}}', "cannot read rank"),
        ('{"v": 1, "units": {"a": {"prune": "half"}}}', "cannot read prune"),
    ],
)
def test_policies_that_cannot_be_read_are_refused(text: str, match: str):
    with pytest.raises(UserError, match=match):
        CompressionPolicy.parse(text)


def test_policies_outside_the_space_are_refused():
    units = [Unit("a", weight_bits=(4.0, 8.0)), Unit("b", weight_bits=(4.0, 8.0))]
    space = Space(units, [Tie((Slot("a", Knob.WEIGHT_BITS), Slot("b", Knob.WEIGHT_BITS)))])
    with pytest.raises(UserError, match="is tied"):
        space.encode(CompressionPolicy((("a", Choice(weight_bits=4)), ("b", Choice(weight_bits=8)))))
    with pytest.raises(UserError, match=r"choose one of \(4.0, 8.0\)"):
        space.encode(CompressionPolicy((("a", Choice(weight_bits=3)), ("b", Choice(weight_bits=3)))))


def test_uniform_policies_cover_every_combination():
    space = Space([Unit(name, prune=(0.5, 0.25, 0.0), weight_bits=(4.0, 8.0)) for name in "abc"])
    found = {space.decode(index_D) for index_D in space.uniform()}
    assert len(found) == 6
    assert all(len({choice for _, choice in policy.choices}) == 1 for policy in found)
