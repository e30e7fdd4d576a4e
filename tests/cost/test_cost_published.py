"""`Published`: the seed's figures where it is sound, and a curve that never falls where it was not."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.cost.published import Published
from plait.cost.published_a100 import A100
from plait.spec.step import Row, Step

# Computed from the published coefficients: prefill of 128, 512, 1024, 2048 tokens; a decode step of 1, 32,
# 94, 95, 128 rows with 512 tokens of context each. Milliseconds.
GOLDEN = {
    ("opt-13b", 1): ((32.26, 73.15, 130.93, 257.69), (20.29, 31.44, 53.73, 50.41, 65.43)),
    ("opt-13b", 2): ((24.56, 51.50, 88.53, 166.46), (13.53, 20.90, 35.63, 33.94, 42.04)),
    ("opt-13b", 4): ((17.95, 32.70, 52.61, 93.25), (10.39, 14.38, 22.37, 23.15, 27.55)),
    ("opt-66b", 2): ((79.53, 190.36, 348.44, 699.96), (48.90, 67.81, 105.64, 79.94, 97.73)),
    ("opt-66b", 3): ((59.25, 137.39, 247.18, 485.95), (36.20, 48.43, 72.89, 68.53, 84.46)),
    ("opt-66b", 4): ((49.95, 110.11, 194.15, 375.30), (31.05, 40.19, 58.46, 59.01, 69.97)),
    ("opt-66b", 8): ((40.19, 81.95, 139.20, 259.01), (23.32, 28.41, 38.59, 48.53, 57.84)),
}
VLLM = {
    ("opt-13b", 1): (97.11, 35.13),
    ("opt-13b", 2): (77.02, None),
    ("opt-13b", 4): (58.02, None),
    ("opt-66b", 2): (253.43, 124.01),
    ("opt-66b", 4): (165.01, 55.31),
    ("opt-66b", 8): (121.69, None),
}


def prefill(tokens: int) -> Step:
    return Step(0, (0,), (Row(0, 0, tokens, draws=True),))


def decode(rows: int, context: int) -> Step:
    return Step(0, (0,), (), tuple(range(rows)), context_tokens=rows * context)


def ms(cost: Published, step: Step) -> float:
    return cost.step_ns(step) / 1e6


@pytest.mark.parametrize(("plan", "times"), GOLDEN.items())
def test_the_published_times_are_reproduced(plan, times):
    cost = replace(A100["distserve", *plan], repaired=False)
    prefills, decodes = times
    assert [ms(cost, prefill(n)) for n in (128, 512, 1024, 2048)] == pytest.approx(prefills, abs=0.01)
    assert [ms(cost, decode(n, 512)) for n in (1, 32, 94, 95, 128)] == pytest.approx(decodes, abs=0.01)


@pytest.mark.parametrize(("plan", "times"), VLLM.items())
def test_the_other_engines_times_are_reproduced(plan, times):
    cost = replace(A100["vllm", *plan], repaired=False)
    assert ms(cost, prefill(512)) == pytest.approx(times[0], abs=0.01)
    if times[1] is not None:
        assert ms(cost, decode(32, 512)) == pytest.approx(times[1], abs=0.01)


@given(
    plan=st.sampled_from(sorted(A100)),
    rows=st.integers(1, 300),
    context=st.integers(1, 4000),
    tokens=st.integers(1, 30_000),
)
def test_repaired_times_never_fall_and_never_jump(plan, rows, context, tokens):
    cost = A100[plan]
    here, more = ms(cost, decode(rows, context)), ms(cost, decode(rows + 1, context))
    assert here <= more + 1e-6
    assert more <= here * 1.12 + 0.2, "one row more"
    assert here <= ms(cost, decode(rows, context + 1)) + 1e-6
    assert ms(cost, prefill(tokens)) <= ms(cost, prefill(tokens + 1)) + 1e-6


@pytest.mark.parametrize("plan", sorted(A100))
def test_below_the_cliff_nothing_is_changed(plan):
    cost = A100[plan]
    for rows in (1, 50, 94):
        assert ms(cost, decode(rows, 512)) == ms(replace(cost, repaired=False), decode(rows, 512))


def test_stages_divide_the_time_and_add_a_millisecond_each_to_a_prefill():
    whole = A100["distserve", "opt-66b", 4]
    halves = whole.staged(2)
    assert ms(halves, prefill(512)) == pytest.approx((ms(whole, prefill(512)) - 1) / 2 + 2)
    assert ms(halves, decode(32, 512)) == pytest.approx(ms(whole, decode(32, 512)) / 2)


def test_both_phases_in_one_step_pay_the_larger_fixed_part_once():
    cost = A100["distserve", "opt-13b", 1]
    both = Step(0, (0,), (Row(99, 0, 512, draws=True),), tuple(range(32)), context_tokens=32 * 512)
    apart = ms(cost, prefill(512)) + ms(cost, decode(32, 512))
    assert ms(cost, both) == pytest.approx(apart - min(cost.prefill[0], cost.decode_small[0]))
