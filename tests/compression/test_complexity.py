"""Costs: the closed forms against sums made by hand, their gradients against differences."""

import numpy as np
import pytest

from plait.compression.complexity import (
    Cost,
    Layer,
    activation_bytes,
    at_levels,
    bops,
    kv_bytes,
    macs,
    table,
    weight_bytes,
)
from plait.compression.space import Space
from plait.spec.policy import CompressionPolicy, Knob, Slot, Tie, Unit

PRUNE, BITS = (0.75, 0.5, 0.25, 0.0), (2.0, 4.0, 8.0)
SPACE = Space(
    [
        Unit("a", prune=PRUNE, weight_bits=BITS, act_bits=BITS, kv_bits=BITS),
        Unit("b", prune=PRUNE, weight_bits=BITS, act_bits=BITS),
        Unit("c", weight_bits=BITS, act_bits=(8.0,)),
    ],
    [Tie((Slot("a", Knob.WEIGHT_BITS), Slot("b", Knob.WEIGHT_BITS)))],
)
LAYERS = [
    Layer("stem", 27_000, 270, 300, 1000, 10, cut_by="a", fixed_bits=8.0),
    Layer("a", 90_000, 900, 1000, 1000, 10, unit="a", cut_by="a", fed_by="a"),
    Layer("deep", 9_000, 90, 1000, 1000, 10, unit="c", cut_by="a", fed_by="a", depthwise=True),
    Layer("b", 200_000, 2000, 1000, 2000, 20, unit="b", cut_by="b", fed_by="a"),
    Layer("head", 200, 200, 20, 10, 10, fed_by="b"),
]


def costs() -> list[Cost]:
    places = [
        (gene.levels, weight) for gene, weight in zip(SPACE.genes, (5.0, 3, 2, 7, 4, 1, 6), strict=True)
    ]
    return [
        bops(SPACE, LAYERS),
        macs(SPACE, LAYERS),
        weight_bytes(SPACE, LAYERS),
        activation_bytes(SPACE, LAYERS),
        kv_bytes(SPACE, [("a", 128), ("b", 64)]),
        table("latency", "us", SPACE, lambda g, v: places[g][1] * v**1.5, base=10.0),
    ]


def by_hand(policy: CompressionPolicy) -> tuple[float, float, float, float]:
    """BOPs, MACs, weight bytes and the largest input's bytes of LAYERS, one after another."""
    work = total = size = largest = 0.0
    for x in LAYERS:
        kept = 1 - (policy.choice(x.cut_by).prune or 0) if x.cut_by else 1.0
        fed = 1 - (policy.choice(x.fed_by).prune or 0) if x.fed_by else 1.0
        share = kept if x.depthwise else kept * fed
        chosen = policy.choice(x.unit) if x.unit else None
        w = chosen.weight_bits if chosen else x.fixed_bits
        a = chosen.act_bits if chosen else x.fixed_bits
        work += x.macs * share * w * a / 1e9
        total += x.macs * share / 1e6
        size += x.weights * share * w / 8 + (4 * x.channels * kept if x.unit or x.fixed_bits < 32 else 0)
        largest = max(largest, x.inputs * fed * a / 8)
    return work, total, size, largest


def test_closed_forms_equal_sums_by_hand():
    index_BD = SPACE.sample(np.random.default_rng(0), 200)
    found = np.stack([at_levels(cost, SPACE, index_BD) for cost in costs()[:4]], -1)
    expected = np.array([by_hand(SPACE.decode(index_D)) for index_D in index_BD])
    np.testing.assert_allclose(found[:, :3], expected[:, :3], rtol=1e-12)
    assert (found[:, 3] >= expected[:, 3]).all(), "a smooth maximum must not promise less than there is"
    # Five terms, so at most log(5) temperatures of 2 % of the largest, which is the head's or a's input.
    assert (found[:, 3] <= expected[:, 3] + np.log(5) * 0.02 * 1000).all()


@pytest.mark.parametrize("cost", costs(), ids=lambda cost: cost.name)
def test_gradients_equal_differences(cost: Cost):
    z_BD = np.random.default_rng(1).uniform(0.01, 0.99, (50, len(SPACE)))
    _, gradient_BD = cost(z_BD)
    step = 1e-6
    for gene in range(len(SPACE)):
        moved = np.eye(len(SPACE))[gene] * step
        slope_B = (cost(z_BD + moved)[0] - cost(z_BD - moved)[0]) / (2 * step)
        np.testing.assert_allclose(gradient_BD[:, gene], slope_B, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("cost", costs(), ids=lambda cost: cost.name)
def test_costs_grow_with_every_coordinate(cost: Cost):
    _, gradient_BD = cost(np.random.default_rng(2).uniform(0, 1, (50, len(SPACE))))
    assert (gradient_BD >= 0).all()


def test_tables_hold_at_levels():
    cost = costs()[-1]
    index_D = np.array([gene % n for gene, n in enumerate(SPACE.count_D)])
    expected = 10 + sum(w * v**1.5 for w, v in zip((5.0, 3, 2, 7, 4, 1, 6), index_D, strict=True))
    assert at_levels(cost, SPACE, index_D) == pytest.approx(expected)


def test_keys_and_values_of_a_unit_without_bits_are_counted_whole():
    lowest = np.zeros((1, len(SPACE)))
    (found,), _ = kv_bytes(SPACE, [("a", 128), ("b", 64)])(lowest)
    assert found == (128 * 2 + 64 * 32) / 8
