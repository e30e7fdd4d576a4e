"""The search: bounds hold, nothing is lost, and what it finds is what trying everything finds."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.cost.catalog import device_named, shape_named
from plait.cost.tables import Tables
from plait.planner.aim import NEVER, Aim
from plait.planner.candidate import Candidate, Part, low_affinity
from plait.planner.cluster import Cluster
from plait.planner.fluid import Fluid
from plait.planner.placed import placed
from plait.planner.plans import Plan, Plans
from plait.planner.probe import Probe, Trial, tried
from plait.planner.race import Entry, Fate
from plait.planner.search import Algorithm, Policy, Search, SearchConfig
from plait.spec.cluster import Link, Role
from plait.spec.slo import Slo
from plait.workload.trace import TraceRow
from tests.scale import scaled

A100, LOCAL, REMOTE = device_named("a100-80g"), Link(300e9, 5_000), Link(3.125e9, 30_000)
NODE = Cluster(1, 4, A100, LOCAL, REMOTE)
QUICK = SearchConfig(
    most_devices=4, most_count=2, probe_requests=60, requests=120, most_requests=120, seeds=2
)


def trace(prompt: int, output: int, cv: float = 0.6, count: int = 200, seed: int = 0) -> list[TraceRow]:
    rng = np.random.default_rng(seed)
    drawn = [
        np.maximum(1, rng.gamma(1 / cv**2, cv**2 * mean, count)).astype(int) for mean in (prompt, output)
    ]
    return [TraceRow(i * 10**9, int(p), int(o)) for i, (p, o) in enumerate(zip(*drawn, strict=True))]


def search(rows=None, rate=6.0, slo="ttft=500ms,tpot=60ms", cluster=NODE, config=QUICK, model="llama-2-7b"):
    return Search(Plans(shape_named(model), cluster), rows or trace(400, 40), Slo.parse(slo), rate, config)


PLANS = st.sampled_from([Plan(1, 1), Plan(2, 1), Plan(1, 2), Plan(4, 1), Plan(2, 2)])
COUNTS = st.integers(1, 3)


@st.composite
def some_candidates(draw):
    kind = draw(st.sampled_from(["colocated", "disaggregated", "hybrid"]))
    if kind == "colocated":
        return Candidate((Part(Role.MIXED, draw(PLANS), draw(COUNTS)),))
    parts = [Part(Role.PREFILL, draw(PLANS), draw(COUNTS)), Part(Role.DECODE, draw(PLANS), draw(COUNTS))]
    return Candidate((*parts, Part(Role.MIXED, draw(PLANS))) if kind == "hybrid" else tuple(parts))


@settings(max_examples=scaled(400), deadline=None)
@given(
    some_candidates(),
    st.integers(20, 1500),
    st.integers(1, 150),
    st.sampled_from([0.2, 0.6, 1.2]),
    st.sampled_from([200, 500, 3000]),
    st.sampled_from([25, 50, 120]),
    st.booleans(),
)
def test_no_run_bears_more_than_its_bound(candidate, prompt, output, cv, ttft_ms, tpot_ms, tables):
    model = "opt-13b" if tables else "llama-2-7b"
    cluster = Cluster(8, 4, A100, LOCAL, REMOTE)
    plans = Plans(shape_named(model), cluster, Tables(model) if tables else None)
    slo = Slo(ttft_ms * 10**6, tpot_ms * 10**6)
    probe = Probe(trace(prompt, output, cv), slo)
    fluid = Fluid(plans, [probe.requests(5, 150)], slo)
    bound_hz = fluid.bound_hz(candidate)
    placement = candidate.place(cluster, 1, fluid.step_tokens)
    rows = probe.requests(5, 150)
    rate_hz = 1.01 * bound_hz if bound_hz else 0.01
    if rate_hz < 1e4:
        assert not probe.bears(placed(placement, plans), rows, rate_hz)


def test_every_candidate_has_one_fate_and_the_best_is_that_of_trying_all():
    looked = search()
    outcome = looked.run()
    plans = [each for each in looked.plans.every() if not looked.plans.refusal(each, 2000)]
    able = looked._placeable(plans)[1]
    rates = looked.measured(able, [0.5 * looked.fluid.steady_hz(each) for each in able])
    best = min(rates, key=lambda each: (looked.aim.score(each.candidate, each.goodput_hz), each.candidate))
    assert outcome.best.devices <= best.devices
    assert outcome.best.high_hz / outcome.best.candidate.devices >= best.low_hz / best.candidate.devices
    tried_or_not = sum(outcome.fates.values())
    assert tried_or_not == len(looked._placeable(plans)[0]) + len(able)
    assert outcome.fates[Fate.FINALIST] == len(outcome.entries)
    assert "requests/s a device" in outcome.reason()
    assert len(looked.placement(outcome.best).instances) >= outcome.best.copies


def test_the_same_seed_finds_the_same_in_any_number_of_heats():
    first, second = search().run(), search().run()
    assert first == second


def test_runs_of_different_lengths_begin_alike_and_large_candidates_have_longer_ones():
    looked = search(config=replace(QUICK, most_requests=2000))
    assert looked.probe.requests(3, 500)[:200] == looked.probe.requests(3, 200)
    one, three = (Candidate((Part(Role.MIXED, Plan(1, 1), count),)) for count in (1, 3))
    assert QUICK.requests <= looked.count(one) <= looked.count(three) <= 2000
    assert looked.bound_hz(three) > looked.bound_hz(one) > 0


def test_a_candidate_that_only_chance_put_behind_is_measured():
    looked = search()
    plain, lucky = (Candidate((Part(Role.MIXED, Plan(1, 1), count),)) for count in (2, 1))
    race = looked._race()
    race._short_hz = {plain: 12.0, lucky: 5.9}
    race.measured[plain] = Entry(plain, 20.0, 12.0, 11.0, 12.5, 480, 1)
    assert race.hopeful() == (lucky, 5.9), "with a share more it would need one device, not two"
    race._short_hz[lucky] = 3.0
    assert race.hopeful() is None


@pytest.mark.parametrize("policy", [Policy.COLOCATED, Policy.DISAGGREGATED, Policy.HYBRID])
def test_a_policy_is_kept(policy):
    outcome = search(config=replace(QUICK, policy=policy)).run()
    assert {each.candidate.kind for each in outcome.entries} == {policy.value}


def test_algorithm_2_pairs_stages_on_their_nodes():
    two = Cluster(2, 2, A100, LOCAL, REMOTE)
    outcome = search(cluster=two, rate=2.0, config=replace(QUICK, algorithm=Algorithm.LOW)).run()
    assert all(low_affinity(each.candidate, 2) for each in outcome.entries)
    pair = Candidate((Part(Role.PREFILL, Plan(1, 2, 2)), Part(Role.DECODE, Plan(1, 2, 2))))
    assert low_affinity(pair, 2)
    assert not low_affinity(pair, 1)
    placement = pair.place(two, 1, lambda part: 512)
    assert [(each.node, each.nodes) for each in placement.instances] == [(0, 2), (0, 2)]


def test_algorithm_1_takes_the_best_plan_of_each_phase():
    looked = search(config=replace(QUICK, algorithm=Algorithm.HIGH))
    outcome = looked.run()
    prefill, decode = outcome.best.candidate.parts
    assert (prefill.role, decode.role) == (Role.PREFILL, Role.DECODE)
    assert outcome.best.goodput_hz > 0


def test_a_rate_that_is_asked_for_is_the_least_that_reaches_the_score():
    aim, pair = Aim(10.0), Candidate((Part(Role.MIXED, Plan(2, 1)),))
    for bar in [(4, -1.0), (5, -1.0), (2, -9.0), (12, -1.9)]:
        needed = aim.needed_hz(pair, bar)
        assert aim.score(pair, needed) <= bar
        assert aim.score(pair, 0.999 * needed) > bar
    assert aim.needed_hz(pair, (1, -1.0)) == float("inf")
    assert aim.needed_hz(pair, NEVER) == 0.0


def test_what_cannot_be_simulated_says_why():
    plans = Plans(shape_named("llama-2-7b"), NODE)
    probe = Probe(trace(100, 10), Slo.parse("ttft=1s,tpot=1s"))
    pair = Candidate((Part(Role.PREFILL, Plan(1, 1)), Part(Role.DECODE, Plan(1, 1))))
    whole = placed(pair.place(NODE, 1, lambda part: 512), plans)

    class Lacking:
        def step_ns(self, step):
            from plait.spec.errors import UserError

            raise UserError("no such step was measured")

    found = tried(Trial(probe, replace(whole, cost=Lacking()), 0, 20, 1.0, 2.0))
    assert (found.rate_hz, found.reason) == (0.0, "no such step was measured")
