"""Elastic placements among the candidates: bounds hold, and times of groups are kept to."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.cost.by_group import LLAMA_8B, llama_8b
from plait.cost.catalog import shape_named
from plait.cost.fitted import Fitted
from plait.cost.group_widths import widths_of
from plait.cost.scaling_base import Degree, ScalingBase
from plait.planner.candidate import Candidate, Part, elastic_candidates
from plait.planner.cluster import Cluster
from plait.planner.fluid import Fluid
from plait.planner.placed import placed
from plait.planner.plans import Plan, Plans
from plait.planner.probe import Probe
from plait.planner.search import Policy, Search
from plait.spec.cluster import Instance, Placement, Role
from plait.spec.errors import UserError
from plait.spec.slo import Slo
from plait.workload.trace import TraceRow
from tests.planner.test_planner_search import A100, LOCAL, NODE, QUICK, REMOTE, trace
from tests.scale import scaled

EIGHT = Cluster(1, 8, A100, LOCAL, REMOTE)
GROUPS = llama_8b(Fitted(0, 0, 0, 0, 9e6, 82.0, 2e4)).models
BASE = ScalingBase(
    "llama-3-8b", "a100-80g", 1, "bfloat16", tuple(Degree(sp, 1, GROUPS[sp]) for sp in (1, 2, 4, 8))
)
F, G, E = Role.ELASTIC_PREFILL, Role.ELASTIC_DECODE, Role.ELASTIC


def search(config=QUICK, rows=None, rate=4.0, slo="ttft=500ms,tpot=60ms", cluster=NODE, groups=None):
    plans = Plans(shape_named("llama-3-8b"), cluster, groups=groups)
    return Search(plans, rows or trace(400, 40), Slo.parse(slo), rate, config)


@st.composite
def some_elastic(draw):
    plans = st.sampled_from([Plan(1, 1), Plan(2, 1)])
    if draw(st.booleans()):
        return Candidate((Part(E, draw(plans), draw(st.sampled_from([2, 4]))),))
    counts = st.sampled_from([1, 2])
    return Candidate((Part(F, draw(plans), draw(counts)), Part(G, draw(plans), draw(counts))))


@settings(max_examples=scaled(200), deadline=None)
@given(
    some_elastic(),
    st.integers(20, 6000),
    st.integers(1, 150),
    st.sampled_from([0.2, 0.6, 1.2]),
    st.sampled_from([200, 500, 3000]),
    st.sampled_from([25, 50, 120]),
    st.booleans(),
)
def test_no_run_bears_more_than_its_bound(candidate, prompt, output, cv, ttft_ms, tpot_ms, measured):
    if measured and any(part.plan.tp > 1 for part in candidate.parts):
        return
    plans = Plans(shape_named("llama-3-8b"), EIGHT, groups=BASE if measured else None)
    slo = Slo(ttft_ms * 10**6, tpot_ms * 10**6)
    probe = Probe(trace(prompt, output, cv), slo)
    rows = probe.requests(5, 100)
    fluid = Fluid(plans, [rows], slo)
    bound_hz = fluid.bound_hz(candidate)
    placement = candidate.place(EIGHT, 1, fluid.step_tokens)
    rate_hz = 1.01 * bound_hz if bound_hz else 0.01
    if rate_hz < 1e4:
        assert not probe.bears(placed(placement, plans, slo=slo), rows, rate_hz)


@pytest.mark.parametrize("policy", [Policy.ELASTIC, Policy.POOLS])
def test_an_elastic_policy_is_kept(policy):
    found = search(replace(QUICK, policy=policy))
    outcome = found.run()
    assert {each.candidate.kind for each in outcome.entries} == {policy.value}
    roles = {each.role for each in found.placement(outcome.best).instances}
    assert roles == ({E} if policy is Policy.ELASTIC else {F, G})


def test_auto_tries_groups_where_it_is_told_to():
    plain, told = search(), search(replace(QUICK, elastic=True))
    kinds = [{each.kind for each in looked.able(2000)} for looked in (plain, told)]
    assert kinds[0] == {"colocated", "disaggregated", "hybrid"}
    assert kinds[1] == kinds[0] | {"elastic", "pools"}
    outcome = told.run()
    assert {each.candidate.kind for each in outcome.entries} & {"elastic", "pools"}


def test_requests_larger_than_an_instance_need_a_pool():
    slots = Plans(shape_named("llama-3-8b"), NODE).slots(Plan(1, 1))
    rows = [TraceRow(i * 10**9, 3 * slots if i == 9 else 2000, 20) for i in range(20)]
    config = replace(QUICK, elastic=True)
    looked = search(config, rows, rate=0.02, slo="ttft=200s,tpot=100ms")
    able = looked.able(3 * slots + 20)
    assert all(each.kind in ("elastic", "pools") for each in able if each.parts[0].plan == Plan(1, 1))
    assert any(each.parts == (Part(E, Plan(1, 1), 4),) for each in able)
    assert not any(each.parts == (Part(E, Plan(1, 1), 2),) for each in able)


def test_measured_times_of_groups_decide_and_what_was_not_measured_is_refused():
    plans = Plans(shape_named("llama-3-8b"), EIGHT, groups=BASE)
    four = Placement(tuple(Instance(i, E) for i in range(4)))
    scenario = placed(four, plans, slo=Slo.parse("ttft=1s,tpot=50ms"))
    assert scenario.config.elastic.widths == BASE.widths(1)
    assert scenario.config.elastic.tpot_ns == 50e6
    assert "not measured" in plans.refusal_of_groups(Plan(2, 1), 2, 1000)
    with pytest.raises(UserError, match="tp 2"):
        placed(Placement(tuple(Instance(i, E, 2) for i in range(4))), plans)
    assert "longest request" in plans.refusal_of_groups(Plan(1, 1), 2, 10**7)
    assert not plans.refusal_of_groups(Plan(1, 1), 2, 1000)


def test_candidates_have_no_stages_and_fit():
    found = list(elastic_candidates(Plans(shape_named("llama-3-8b"), EIGHT).every(), 8, 4))
    assert len(set(found)) == len(found)
    assert all(part.plan.pp == part.plan.nodes == 1 for each in found for part in each.parts)
    assert all(each.devices <= 8 for each in found)
    assert {each.kind for each in found} == {"elastic", "pools"}
    assert Candidate((Part(E, Plan(1, 1), 8),)) in found


def test_times_of_groups_are_those_of_the_cost():
    cost = llama_8b(Fitted(0, 0, 0, 0, 9e6, 82.0, 2e4))
    for found in widths_of(cost, (1, 2, 4, 8), 200_000):
        model = cost.models[found.instances]
        for thousands in LLAMA_8B[found.instances]:
            tokens = 1024 * thousands
            mine = found.alpha + found.beta * tokens + found.gamma * tokens**2
            theirs = model.prefill_ns + model.prefill_token_ns * tokens + model.prefill_square_ns * tokens**2
            assert mine == pytest.approx(theirs, rel=0.05)
