"""Costs of instances with parallelism inside: published tables, the analytic form, groups, pipelines."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.cost.appendix import Appendix, Constants, opt_175b
from plait.cost.by_group import LLAMA_8B, LWM_7B, ByGroup, llama_8b, lwm_7b
from plait.cost.catalog import CONFIGS, device_named, llama_7b_on_a100, shape_named
from plait.cost.coefficients import KV_TOKENS, Coefficients, on_a100
from plait.cost.fitted import Fitted
from plait.cost.pipeline import Pipeline
from plait.cost.roofline import Roofline
from plait.spec.cluster import Link
from plait.spec.errors import NotFound, UserError
from plait.spec.shape import ModelShape
from plait.spec.step import Row, Step

MS = 1e6
MEASURED = [("opt-13b", tp) for tp in (1, 2, 4)] + [("opt-66b", tp) for tp in (2, 3, 4, 8)]
OPT_66B = ModelShape.from_config(
    {
        **CONFIGS["opt-13b"],
        "hidden_size": 9216,
        "ffn_dim": 36864,
        "num_attention_heads": 72,
        "num_hidden_layers": 64,
    }
)
OPT_175B = ModelShape.from_config(
    {
        **CONFIGS["opt-13b"],
        "hidden_size": 12288,
        "ffn_dim": 49152,
        "num_attention_heads": 96,
        "num_hidden_layers": 96,
    }
)


def prompt(tokens: int) -> Step:
    return Step(0, (0,), (Row(0, 0, tokens, draws=True),))


def decodes(batch: int, context: int) -> Step:
    """`context` tokens a row, the one being drawn included."""
    return Step(0, (0,), (), again=tuple(range(batch)), context_tokens=batch * context)


@pytest.mark.parametrize(
    ("model", "tp", "prefill_ms", "decode_ms"),
    [("opt-13b", 1, 73.15, 53.73), ("opt-66b", 4, 110.11, 58.46), ("opt-66b", 8, 81.95, 38.59)],
)
def test_seed_compatible_tables_give_the_golden_times(model, tp, prefill_ms, decode_ms):
    cost = on_a100(model, tp, seed_compatible=True)
    assert cost.step_ns(prompt(512)) / MS == pytest.approx(prefill_ms, abs=0.01)
    assert cost.step_ns(decodes(94, 512)) / MS == pytest.approx(decode_ms, abs=0.01)


def test_the_seed_has_a_cliff_and_we_have_none():
    seed, ours = (on_a100("opt-66b", 2, seed_compatible=kept) for kept in (True, False))
    assert seed.step_ns(decodes(95, 513)) < 0.77 * seed.step_ns(decodes(94, 513))
    assert ours.step_ns(decodes(95, 513)) >= ours.step_ns(decodes(94, 513))


@pytest.mark.parametrize(("model", "tp"), MEASURED)
@pytest.mark.parametrize("engine", ["distserve", "vllm"])
@given(
    batch=st.integers(1, 250),
    context=st.integers(0, 200_000),
    rows=st.integers(0, 60),
    more=st.integers(0, 50_000),
)
def test_decode_times_rise_with_rows_and_with_context(engine, model, tp, batch, context, rows, more):
    cost = on_a100(model, tp, engine=engine)
    assert cost.decode_ms(batch + rows, context + more) >= cost.decode_ms(batch, context) - 1e-9


@pytest.mark.parametrize(("model", "tp"), MEASURED)
def test_outside_the_gap_between_the_sweeps_the_small_set_holds(model, tp):
    seed, ours = (on_a100(model, tp, seed_compatible=kept) for kept in (True, False))
    for batch in (1, 32, 64):
        assert ours.step_ns(decodes(batch, 300)) == seed.step_ns(decodes(batch, 300))
    for batch in (96, 128, 192):
        assert ours.step_ns(decodes(batch, 300)) >= seed.step_ns(decodes(batch, 300))


def test_large_batches_are_those_of_the_large_set_where_no_smaller_one_is_slower():
    seed, ours = (on_a100("opt-13b", 1, seed_compatible=kept) for kept in (True, False))
    assert ours.step_ns(decodes(192, 300)) == seed.step_ns(decodes(192, 300))


def test_stages_share_the_work_and_the_first_one_may_cost_more():
    cost = on_a100("opt-13b", 1, 2, seed_compatible=True)
    one, two = cost.stages_ns(prompt(512))
    assert one == two
    assert cost.step_ns(prompt(512)) == one + two
    assert one / MS == pytest.approx((73.15 - 1) / 2 + 2, abs=0.01)
    first, second = replace(cost, first_stage=True).stages_ns(prompt(512))
    assert (first - second) / MS == pytest.approx(2 + 0.0512)


def test_what_was_not_measured_is_refused_with_what_was():
    with pytest.raises(NotFound, match="opt-13b tp4"):
        on_a100("opt-13b", 8)
    with pytest.raises(UserError, match="negative"):
        Coefficients((1, -1, 0), (1, 1, 1), (1, 1, 1))
    with pytest.raises(UserError, match="stage"):
        replace(on_a100("opt-13b", 1), pp=0)
    with pytest.raises(UserError, match="ByGroup"):
        on_a100("opt-13b", 1).step_ns(replace(prompt(5), group=(0, 1)))
    assert on_a100("opt-66b", 2, engine="vllm").prefill[2] == 0
    assert KV_TOKENS["opt-13b"][1, 1] == 66_144


def test_the_analytic_form_gives_back_the_table_that_its_constants_came_from():
    shape, table = shape_named("opt-13b"), on_a100("opt-13b", 2)
    form = Appendix(Constants.of(table, shape, 2), shape, tp=2)
    for step in (prompt(128), prompt(2000), decodes(1, 600), decodes(64, 300)):
        assert form.step_ns(step) == pytest.approx(table.step_ns(step), rel=1e-6)
    assert len(replace(form, pp=4).stages_ns(prompt(128))) == 4
    with pytest.raises(UserError, match="cut"):
        replace(form, pp=41)


def test_the_analytic_form_carries_a_model_to_another():
    """Constants of OPT-66B predict OPT-13B at the same tp."""
    form = Appendix(Constants.of(on_a100("opt-66b", 4), OPT_66B, 4), shape_named("opt-13b"), tp=4)
    measured = on_a100("opt-13b", 4)
    for step in (prompt(512), prompt(1024), decodes(32, 513)):
        assert form.step_ns(step) == pytest.approx(measured.step_ns(step), rel=0.5)
    large, small = opt_175b(OPT_175B, 4, 3), on_a100("opt-66b", 4, 3)
    assert 1.5 < large.step_ns(prompt(1024)) / small.step_ns(prompt(1024)) < 3.5
    with pytest.raises(UserError, match="12,288"):
        opt_175b(OPT_66B, 4, 3)


@pytest.mark.parametrize("plan", LWM_7B)
def test_fits_to_loongserves_figure(plan):
    fitted = lwm_7b(*plan)
    for (batch, length), (prefill_ms, _) in LWM_7B[plan].items():
        step = Step(0, (0,), tuple(Row(i, 0, length, draws=True) for i in range(batch)))
        assert fitted.step_ns(step) / MS == pytest.approx(prefill_ms, rel=0.35)
    with pytest.raises(UserError, match="not measured"):
        lwm_7b(3, 3)


def test_groups_of_every_measured_size_and_those_between():
    cost = llama_8b(Fitted(0, 0, 0, 0, 10e6, 100.0, 1e4))
    for sp, points in LLAMA_8B.items():
        group = tuple(range(sp))
        for k, seconds in points.items():
            found = cost.step_ns(replace(prompt(1024 * k), group=group))
            assert found / 1e9 == pytest.approx(seconds, rel=0.25), (sp, k)
    three, two = (cost.step_ns(replace(prompt(65_536), group=tuple(range(n)))) for n in (3, 2))
    assert three == two
    assert cost.step_ns(replace(decodes(4, 100), group=(0, 1))) == 10e6 + 4e4 + 4e4
    with pytest.raises(UserError, match="alone"):
        ByGroup({2: cost.models[2]})


def test_a_pipeline_takes_the_whole_and_its_hops_while_stages_share_the_layers():
    whole = llama_7b_on_a100()
    pipe = Pipeline(whole, 3, 32, token_bytes=8192, hop=Link(25e9 / 8, 10_000))
    step = prompt(1000)
    hop_ns = 10_000 + round(1000 * 8192 / (25e9 / 8) * 1e9)
    stages = pipe.stages_ns(step)
    assert sum(stages) == pipe.step_ns(step) == pytest.approx(whole.step_ns(step) + 2 * hop_ns, abs=3)
    assert stages[0] == pytest.approx(whole.step_ns(step) * 11 / 32, abs=2)
    assert stages[2] - hop_ns == pytest.approx(whole.step_ns(step) * 10 / 32, abs=2)
    with pytest.raises(UserError, match="33 stages"):
        replace(pipe, pp=33)


def test_tensor_parallel_exchanges_cost_what_their_link_says():
    shape = shape_named("opt-13b")
    free = Roofline(device_named("h100"), shape, tp=4)
    linked = Roofline(device_named("h100"), shape, tp=4, link=Link(450e9, 2_000))
    payload_s = 512 * 5120 * 2 / 4 / 450e9 + 2e-6
    expected = 2 * 40 * 2 * 3 * payload_s * 1e9
    assert linked.step_ns(prompt(512)) - free.step_ns(prompt(512)) == pytest.approx(expected, rel=1e-3)


def test_a_step_with_both_phases_reads_the_weights_once():
    cost = on_a100("opt-13b", 1)
    chunk = Row(0, 0, 128, draws=True)
    both = Step(0, (0,), (chunk,), again=(1, 2), context_tokens=1000)
    apart_ns = cost.step_ns(replace(both, again=(), context_tokens=0)) + cost.step_ns(replace(both, rows=()))
    least = min(cost.prefill[0], cost.small[0], cost.large[0])
    assert cost.step_ns(both) == pytest.approx(apart_ns - least * 1e6, abs=2)
    seed = on_a100("opt-13b", 1, seed_compatible=True)
    assert seed.step_ns(both) == pytest.approx(apart_ns, abs=2)
