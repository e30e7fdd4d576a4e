"""Spaces restricted to what an engine can load."""

from dataclasses import replace

import numpy as np
import pytest

from plait.compression.space import Space
from plait.compression.targets import TARGETS, Target, restrict
from plait.spec.errors import UserError
from plait.spec.policy import Knob, Unit

PRUNE, BITS = (0.5, 0.25, 0.0), (2.0, 3.0, 4.0, 8.0)
UNITS = [Unit(f"u{n}", prune=PRUNE, weight_bits=BITS, act_bits=(*BITS, 16.0)) for n in range(3)]


def policies(space: Space) -> list:
    return [space.decode(index_D) for index_D in space.sample(np.random.default_rng(0), 50)]


def test_only_what_has_kernels_is_left():
    for policy in policies(restrict(UNITS, [], TARGETS["plait"])):
        assert all(choice.weight_bits in BITS and choice.act_bits == 16 for _, choice in policy.choices)
    for policy in policies(restrict(UNITS, [], replace(TARGETS["vllm"], equal_widths=False))):
        assert all(choice.weight_bits in (4, 8) for _, choice in policy.choices)
    for policy in policies(restrict(UNITS, [], TARGETS["int8"])):
        assert all(choice.weight_bits == choice.act_bits == 8 for _, choice in policy.choices)
    assert restrict(UNITS, [], TARGETS["simulated"]).digest == Space(UNITS).digest


def test_widths_and_bits_are_tied_where_the_engine_has_one_of_them():
    alike = Target("alike", equal_widths=True, equal_bits=True)
    space = restrict(UNITS, [], alike)
    assert sorted(gene.knob for gene in space.genes) == [Knob.PRUNE, *[Knob.WEIGHT_BITS] * 3]
    for policy in policies(space):
        assert len({choice.prune for _, choice in policy.choices}) == 1
        assert all(choice.weight_bits == choice.act_bits for _, choice in policy.choices)


def test_units_without_a_legal_level_are_named_before_the_search():
    odd = [*UNITS, Unit("odd", weight_bits=(3.0, 5.0))]
    with pytest.raises(UserError, match=r"no kernel for odd at weight_bits .* allow one of \(4.0"):
        restrict(odd, [], TARGETS["vllm"])
