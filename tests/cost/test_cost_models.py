"""Every cost model: monotone in every argument, and true to what it was made from."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.cost.catalog import CONFIGS, DEVICES, device_named, llama_7b_on_a100, shape_named
from plait.cost.cost import Cost, Load, pairs
from plait.cost.fitted import Fitted, Timing
from plait.cost.roofline import Roofline
from plait.cost.table import Table
from plait.spec.cluster import Link
from plait.spec.errors import NotFound, UserError
from plait.spec.shape import ModelShape
from plait.spec.step import Row, Step

WINDOWED = ModelShape.from_config(
    {**CONFIGS["llama-3-8b"], "sliding_window": 128, "num_hidden_layers": 4, "hidden_size": 512}
)
FITTED = Fitted(18.1e6, 0.1019e6, 7.12, 0.3e3, 19.9e6, 0.627e3, 0.0385e6)
TABLE = Table.of(
    {(n, c): 1e6 + 900 * n + 0.1 * n * n + 30 * c for n in (16, 256, 2048) for c in (0, 512, 4096)},
    {(b, c): 2e6 + 4000 * b + 2 * b * c for b in (1, 8, 64) for c in (16, 256, 2048)},
)
COSTS: dict[str, Cost] = {
    "roofline": llama_7b_on_a100(),
    "windowed": Roofline(device_named("h100"), WINDOWED, tp=2, link=Link(450e9, 3_000)),
    "fitted": FITTED,
    "table": TABLE,
}


def chunks(*parts: tuple[int, int], draws: bool = True) -> Step:
    """A step of chunks (first, count)."""
    rows = tuple(Row(i, first, count, draws=draws) for i, (first, count) in enumerate(parts))
    return Step(1, (0,), rows)


def decodes(batch: int, context_tokens: int) -> Step:
    return Step(1, (0,), (), again=tuple(range(batch)), context_tokens=context_tokens)


@pytest.mark.parametrize("name", COSTS)
@given(
    parts=st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 3000)), max_size=3),
    batch=st.integers(0, 200),
    length=st.integers(1, 4000),
    more=st.tuples(st.integers(0, 500), st.integers(0, 500), st.integers(0, 500)),
)
def test_no_argument_may_lower_the_time(name, parts, batch, length, more):
    cost = COSTS[name]
    step = replace(chunks(*parts), again=tuple(range(batch)), context_tokens=batch * length)
    cheap = cost.step_ns(step)
    assert cheap >= 1
    cached, new, context = more
    for index, (first, count) in enumerate(parts):
        for grown in ((first + cached, count), (first, count + new)):
            longer = chunks(*parts[:index], grown, *parts[index + 1 :])
            assert cost.step_ns(replace(step, rows=longer.rows)) >= cheap - 1
    if batch:
        assert cost.step_ns(replace(step, context_tokens=batch * length + context)) >= cheap - 1
    joined = replace(step, again=tuple(range(batch + 1)), context_tokens=(batch + 1) * length)
    assert cost.step_ns(joined) >= cheap - 1
    assert cost.step_ns(replace(step, rows=chunks(*parts, (cached, new + 1)).rows)) >= cheap - 1


@pytest.mark.parametrize("name", COSTS)
def test_a_mixed_step_reads_the_weights_once(name):
    cost = COSTS[name]
    alone, batch = chunks((0, 256)), decodes(16, 16 * 512)
    mixed = cost.step_ns(replace(alone, again=batch.again, context_tokens=batch.context_tokens))
    assert max(cost.step_ns(alone), cost.step_ns(batch)) < mixed < cost.step_ns(alone) + cost.step_ns(batch)


def test_a_described_decode_costs_what_a_named_one_costs():
    described = Step(1, (0,), (Row(7, 99, 1, given=False, draws=True),))
    assert Load.of(described) == Load.of(decodes(1, 100))


@given(st.integers(0, 300), st.integers(1, 100), st.one_of(st.none(), st.integers(1, 200)))
def test_pairs_by_counting(first, count, window):
    row = Row(0, first, count)
    keys = [first + i + 1 for i in range(count)]
    assert pairs(row, window) == sum(min(k, window) if window else k for k in keys)


def test_roofline_of_7b_on_a100_is_near_its_published_rows():
    """LoongServe figure 3, one A800, LWM-7B: length 10: 18.58 and 11.38 ms; 1,000: 68.89 and 13.01."""
    cost = llama_7b_on_a100()
    assert cost.step_ns(chunks((0, 1000))) == pytest.approx(68.89e6, rel=0.2)
    assert cost.step_ns(decodes(1, 10)) == pytest.approx(11.38e6, rel=0.05)
    assert cost.step_ns(decodes(1, 1000)) == pytest.approx(13.01e6, rel=0.15)
    assert 100_000 < cost.kv_slots() < 130_000  # 77 GB less 13.5 GB of weights at 0.5 MiB a token


def test_roofline_by_hand():
    """A decode of one row reads weights and KV; a long chunk computes."""
    device, shape = device_named("a100-80g"), shape_named("llama-2-7b")
    cost = Roofline(device, shape)
    read_s = (shape.step_bytes + 500 * shape.kv_bytes_per_token) / device.bandwidth
    assert cost.step_ns(decodes(1, 500)) - device.step_ns == pytest.approx(read_s * 1e9, abs=2)
    flops = 2000 * shape.flops_per_token + shape.flops_per_logits + 2000 * 2001 // 2 * shape.flops_per_pair
    compute_s = flops / (device.flops * device.efficiency)
    assert cost.step_ns(chunks((0, 2000))) - device.step_ns == pytest.approx(compute_s * 1e9, abs=2)


def test_tensor_parallelism_is_faster_and_its_link_costs():
    device, shape = device_named("h200"), shape_named("opt-13b")
    step = chunks((0, 512))
    one, two = Roofline(device, shape), Roofline(device, shape, tp=2)
    linked = Roofline(device, shape, tp=2, link=Link(450e9, 5_000))
    assert two.step_ns(step) < linked.step_ns(step) < one.step_ns(step)


def test_a_group_shares_tokens_but_each_member_reads_all_weights():
    step = chunks((0, 4096))
    grouped = replace(step, group=(0, 1))
    for cost in COSTS.values():
        assert cost.step_ns(step) / 2 < cost.step_ns(grouped) < cost.step_ns(step)


def test_fit_finds_the_coefficients_that_made_the_times():
    steps = [chunks((c, n)) for n in (8, 64, 256, 1024, 2000) for c in (0, 300, 2000)]
    steps += [decodes(b, b * length) for b in (1, 8, 64, 192) for length in (16, 500, 2000)]
    exact = Fitted.fit([Timing(step, _exact_ns(FITTED, step)) for step in steps])
    for field, value in _coefficients(FITTED).items():
        assert getattr(exact, field) == pytest.approx(value, rel=1e-6), field
    rng = np.random.default_rng(0)
    noisy = [Timing(step, _exact_ns(FITTED, step) * rng.normal(1, 0.02)) for step in steps]
    errors = [Fitted.fit(noisy).step_ns(step) / _exact_ns(FITTED, step) - 1 for step in steps]
    assert max(abs(error) for error in errors) < 0.05


def test_fit_never_turns_a_coefficient_negative():
    """Times that grow slower than linearly would ask for a negative square."""
    steps = [chunks((0, n)) for n in (10, 100, 1000)]
    timings = [Timing(step, 1e6 * Load.of(step).chunk_tokens ** 0.5) for step in steps]
    fitted = Fitted.fit([*timings, Timing(decodes(1, 10), 1e6)])
    assert min(_coefficients(fitted).values()) >= 0


def test_fit_refuses_what_it_cannot_fit():
    with pytest.raises(UserError, match="both phases"):
        Fitted.fit([Timing(chunks((0, 5)), 1e6)])
    with pytest.raises(UserError, match="apart"):
        Fitted.fit([Timing(replace(chunks((0, 5)), again=(1,), context_tokens=4), 1e6)])
    with pytest.raises(UserError, match="positive"):
        Fitted.fit([Timing(chunks((0, 5)), 0)])
    with pytest.raises(UserError, match="fit it anew"):
        replace(FITTED, prefill_square_ns=-1.0)


def test_fitted_gives_the_published_times_of_distserve():
    """OPT-13B, TP1: their coefficients in ms; their golden times are 1 ms a stage higher."""
    ms = 1e6
    model = Fitted(
        18.10254647486372 * ms, 0.1019122572698738 * ms, 7.122264314252114e-06 * ms, 0.0,
        19.934702624895458 * ms, 0.0006269356524350583 * ms, 0.03850697740828398 * ms,
    )  # fmt: skip
    for length, golden_ms in ((128, 32.26), (512, 73.15), (1024, 130.93), (2048, 257.69)):
        assert model.step_ns(chunks((0, length))) / ms + 1 == pytest.approx(golden_ms, abs=0.01)
    for batch, golden_ms in ((1, 20.29), (32, 31.44), (94, 53.73)):
        assert model.step_ns(decodes(batch, batch * 513)) / ms == pytest.approx(golden_ms, abs=0.07)


def test_fitted_survives_its_file(tmp_path):
    path = tmp_path / "cost.json"
    FITTED.save(path)
    assert Fitted.load(path) == FITTED
    path.write_text('{"prefill_ns": 1}')
    with pytest.raises(UserError, match="exactly the keys"):
        Fitted.load(path)
    with pytest.raises(UserError, match="no fitted cost model"):
        Fitted.load(tmp_path / "absent.json")


def test_table_passes_through_its_points():
    for n in (16, 256, 2048):
        for c in (0, 512, 4096):
            assert TABLE.step_ns(chunks((c, n))) == round(1e6 + 900 * n + 0.1 * n * n + 30 * c)
    for b in (1, 8, 64):
        for c in (16, 256, 2048):
            assert TABLE.step_ns(decodes(b, b * c)) == round(2e6 + 4000 * b + 2 * b * c)


def test_table_is_exact_between_points_of_a_bilinear_time():
    assert TABLE.step_ns(decodes(30, 30 * 700)) == round(2e6 + 4000 * 30 + 2 * 30 * 700)


def test_table_reads_csv_and_json(tmp_path):
    rows = [("prefill", n, c, 100 * n + c + 1) for n in (1, 9) for c in (0, 9)]
    rows += [("decode", b, c, 100 * b + c) for b in (1, 9) for c in (1, 9)]
    sheet, listing = tmp_path / "t.csv", tmp_path / "t.json"
    sheet.write_text("phase,x,y,ns\n" + "\n".join(",".join(map(str, row)) for row in rows))
    objects = [f'{{"phase": "{p}", "x": {x}, "y": {y}, "ns": {ns}}}' for p, x, y, ns in rows]
    listing.write_text(f"[{','.join(objects)}]")
    for table in (Table.load(sheet), Table.load(listing)):
        assert table.step_ns(chunks((0, 9))) == 901
        assert table.step_ns(decodes(9, 81)) == 909
    sheet.write_text("phase,x,y,ns\nprefill,1,0,5\nprefil,1,0,5\n")
    with pytest.raises(UserError, match="point 2"):
        Table.load(sheet)
    sheet.write_text("phase,x,y,ns\nprefill,1,0,5\n")
    with pytest.raises(UserError, match="no grid"):
        Table.load(sheet)


def test_names_that_nobody_knows_are_answered_with_those_that_are_known():
    with pytest.raises(NotFound, match="h200"):
        device_named("tpu")
    with pytest.raises(NotFound, match="llama-2-7b"):
        shape_named("gpt-9")
    assert all(device.name == name for name, device in DEVICES.items())


def test_weights_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="more devices"):
        Roofline(device_named("cpu-core"), shape_named("opt-13b")).kv_slots()


def _coefficients(model: Fitted) -> dict[str, float]:
    return {name: getattr(model, name) for name in Fitted.__slots__}


def _exact_ns(model: Fitted, step: Step) -> float:
    """The formula of the class docstring, unrounded."""
    if step.again:
        return (
            model.decode_ns
            + model.decode_context_ns * step.context_tokens
            + model.decode_row_ns * len(step.again)
        )
    (row,) = step.rows
    squares = (row.first + row.count) ** 2 - row.first**2
    linear = model.prefill_token_ns * row.count + model.prefill_cached_ns * row.first
    return model.prefill_ns + linear + model.prefill_square_ns * squares


def test_an_answer_seen_late_does_not_spoil_a_fit():
    """One step's end is seen late, so the next one seems to take no time; the sum is right."""
    true = Fitted(10e6, 2e5, 0.0, 0.0, 4e6, 0.0, 1e5)
    steps = [decodes(rows, rows * 100) for rows in range(1, 25)] + [
        chunks((0, n)) for n in range(20, 260, 10)
    ]
    timings = [Timing(step, true.step_ns(step)) for step in steps]
    late = [Timing(timings[4].step, timings[4].ns + timings[5].ns), Timing(timings[5].step, 10_000)]
    found = Fitted.fit([*timings[:4], *late, *timings[6:]])
    for step in steps:
        assert found.step_ns(step) == pytest.approx(true.step_ns(step), rel=0.25)
