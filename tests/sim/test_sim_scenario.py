"""The serving core in the virtual world: what it promises holds, and its recordings replay."""

from dataclasses import asdict, replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.cost.catalog import llama_7b_on_a100
from plait.cost.cost import ByInstance
from plait.cost.fitted import Fitted
from plait.serving.admission import AdmissionConfig
from plait.serving.batcher import BatcherConfig
from plait.serving.handover import HandoverConfig
from plait.serving.manager import GlobalManager, ManagerConfig
from plait.sim.copies import Network
from plait.sim.measured import timings
from plait.sim.recorded import Recorded
from plait.sim.scenario import Scenario, core_from
from plait.sim.world import World
from plait.spec.cluster import Link, Placement, Role
from plait.spec.command import End
from plait.spec.errors import UserError
from plait.spec.event import Aborted, Moved, Reassign, Stopped, WorkerLost, WorkerUp
from plait.spec.request import EndReason
from plait.workload.journal import Entry, Journal, read_journal, replay
from plait.workload.profile import Profile
from plait.workload.result import Recorder, Summary
from plait.workload.timeline import timeline

S = 1_000_000_000
COST = llama_7b_on_a100()
FAST = Fitted(3e6, 5e4, 4.0, 20.0, 6e6, 300.0, 9e4)
TIGHT = Scenario(
    Placement.colocated(2),
    COST,
    slots=1024,
    config=ManagerConfig(
        admission=AdmissionConfig(output_share=0.1), batcher=BatcherConfig(step_tokens=256), retries=5
    ),
)
"""Little memory, and outputs presumed short: requests are preempted."""


def record(scenario, rows, faults=(), max_tokens=None):
    entries: list[Entry] = []

    def keep(now_ns, event, commands):
        entries.append(Entry(now_ns, event, tuple(commands)))

    scenario.run(rows, [keep], max_tokens=max_tokens, faults=faults)
    return entries


def rows(seed=0, count=60, rate_hz=30.0):
    profile = Profile("poisson", rate_hz=rate_hz, count=count, prompt="20-400", output="1-120", seed=seed)
    return profile.rows()


def ends(entries):
    return {c.request: c for entry in entries for c in entry.commands if isinstance(c, End)}


@pytest.mark.parametrize("max_tokens", [None, 200])
def test_every_request_ends_where_its_trace_says_though_it_is_preempted(max_tokens):
    workload = rows()
    entries = record(TIGHT, workload, max_tokens=max_tokens)
    found = ends(entries)
    assert len(found) == len(workload)
    for number, row in enumerate(workload):
        assert found[number].tokens == row.output_tokens
        assert found[number].reason == (EndReason.LENGTH if max_tokens is None else EndReason.STOP)
    core = GlobalManager(TIGHT.config)
    assert replay(core, entries) is None
    assert core.counts.preemptions > 0
    assert core.quiet


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 1000),
    aborts=st.lists(st.tuples(st.floats(0, 6), st.integers(0, 39)), max_size=6),
    stops=st.lists(st.tuples(st.floats(0, 6), st.integers(0, 39), st.integers(1, 9)), max_size=4),
    loss_s=st.none() | st.floats(0.1, 5),
)
def test_a_recording_of_the_serving_core_makes_the_same_decisions(seed, aborts, stops, loss_s):
    workload = rows(seed, count=40)
    arrived = {number: row.arrival_ns for number, row in enumerate(workload)}
    faults = [(max(int(s * S), arrived[r] + 1), Aborted(r)) for s, r in aborts]
    faults += [(max(int(s * S), arrived[r] + 1), Stopped(r, count)) for s, r, count in stops]
    if loss_s is not None:
        lost_ns = int(loss_s * S)
        faults += [(lost_ns, WorkerLost(1, 0)), (lost_ns + S // 2, WorkerUp(1, 1, TIGHT.slots))]
    live = record(TIGHT, workload, faults)
    assert len(ends(live)) == len(workload)
    recorded, again = Recorded(live), []
    keep = [lambda now_ns, event, commands: again.append(Entry(now_ns, event, tuple(commands)))]
    World(GlobalManager(TIGHT.config), recorded, keep).run(recorded.inputs)
    assert again == live
    assert replay(GlobalManager(TIGHT.config), live) is None


def test_more_instances_serve_a_load_better():
    """Under one and the same overload, latency falls and nothing is lost."""
    means = []
    for count in (1, 2, 4):
        scenario = Scenario(Placement.colocated(count), COST, COST.kv_slots())
        recorder = Recorder()
        scenario.run(rows(count=200, rate_hz=60.0), [recorder.see])
        summary = Summary.of(recorder.records)
        assert summary.completed == 200
        assert summary.e2e_ms is not None
        means.append(summary.e2e_ms.mean)
    assert means[0] > means[1] > means[2]


def test_a_journal_of_a_simulation_builds_its_core_again(tmp_path):
    path = tmp_path / "run.jsonl"
    with Journal(path, asdict(TIGHT.config), {}) as journal:
        TIGHT.run(rows(count=20), [journal.append])
    history = read_journal(path)
    core = core_from(history.config)
    assert core.manager.config == TIGHT.config
    assert replay(core, history.entries) is None
    changed = replace(TIGHT.config, batcher=BatcherConfig(step_tokens=64))
    assert replay(core_from(asdict(changed)), history.entries) is not None
    with pytest.raises(UserError, match="does not configure"):
        core_from({"page": "sixteen"})


def test_the_timeline_of_a_busy_run_closes_all_spans_and_counts_back_to_zero():
    lost = [(S, WorkerLost(1, 0)), (2 * S, WorkerUp(1, 1, TIGHT.slots))]
    entries = record(TIGHT, rows(), faults=lost)
    events = timeline(entries).events
    spans = [event["ph"] for event in events if event.get("cat") == "request"]
    assert spans.count("b") == spans.count("e") == 60
    assert spans.count("n") == 60
    last = {(e["pid"], e["name"]): e["args"] for e in events if e["ph"] == "C"}
    assert last[0, "queue"] == {"waiting": 0, "running": 0}
    assert last[1, "KV"] == last[2, "KV"] == {"tokens": 0}
    most = max(e["args"]["tokens"] for e in events if e["ph"] == "C" and e["name"] == "KV")
    assert TIGHT.slots // 2 < most <= TIGHT.slots


def test_moves_stand_on_the_copy_lanes_of_the_timeline():
    entries = record(HYBRID, rows(), [(S, Reassign(3, Role.DECODE))])
    events = timeline(entries).events
    moves = [event for event in events if event.get("cat") == "move"]
    assert len(moves) == sum(isinstance(entry.event, Moved) for entry in entries) > 0
    for pid in {event["pid"] for event in moves}:
        spans = [(event["ts"], event["ts"] + event["dur"]) for event in moves if event["pid"] == pid]
        assert all(sooner[1] <= later[0] + 1e-3 for sooner, later in pairwise(spans))
    assert "takes decode" in [event["name"] for event in events]


def test_prefixes_of_a_trace_are_shared(tmp_path):
    path = tmp_path / "trace.jsonl"
    lengths = '"input_length": 1100, "output_length": 4'
    lines = [f'{{"timestamp": {i * 3000}, {lengths}, "hash_ids": [0, 1, {i + 2}]}}' for i in range(5)]
    path.write_text("\n".join(lines))
    workload = Profile("trace", count=5, trace=path, form="mooncake").rows()
    scenario = Scenario(Placement.colocated(1), COST, COST.kv_slots())
    entries = record(scenario, workload)
    core = GlobalManager(scenario.config)
    assert replay(core, entries) is None
    assert core.counts.prefix_hits == 4 * 1024


def test_a_cost_model_is_recovered_from_a_journal_and_predicts_another_run():
    scenario = Scenario(Placement.colocated(2), FAST, slots=100_000)
    found = Fitted.fit(timings(record(scenario, rows(1, count=150))))
    other = rows(2, count=150)
    truth, guess = (_mean_latency(replace(scenario, cost=model), other) for model in (FAST, found))
    assert guess == pytest.approx(truth, rel=0.01)


def _mean_latency(scenario, workload):
    recorder = Recorder()
    scenario.run(workload, [recorder.see])
    spread = Summary.of(recorder.records).e2e_ms
    assert spread is not None
    return spread.mean


NETWORK = Network(COST.shape.kv_bytes_per_token, Link(50e9, 5_000), Link(3e9, 20_000), layers=32)
HYBRID = replace(
    TIGHT,
    placement=Placement.disaggregated(2, 1, mixed=1),
    config=replace(TIGHT.config, handover=HandoverConfig(overlap=True)),
    network=NETWORK,
)


@pytest.mark.parametrize(
    "placement", [Placement.disaggregated(1, 1), Placement.disaggregated(2, 3), HYBRID.placement]
)
@pytest.mark.parametrize("overlap", [False, True])
def test_prefill_and_decode_apart_serve_every_request(placement, overlap):
    config = replace(TIGHT.config, handover=HandoverConfig(overlap=overlap))
    scenario = replace(TIGHT, placement=placement, config=config, network=NETWORK)
    workload = rows()
    entries = record(scenario, workload, max_tokens=200)
    assert {n: end.tokens for n, end in ends(entries).items()} == {
        n: row.output_tokens for n, row in enumerate(workload)
    }
    core = GlobalManager(scenario.config)
    assert replay(core, entries) is None
    assert core.counts.moves > 0
    assert core.quiet


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 1000),
    aborts=st.lists(st.tuples(st.floats(0, 6), st.integers(0, 39)), max_size=6),
    switches=st.lists(st.tuples(st.floats(0, 5), st.integers(0, 3), st.sampled_from(Role)), max_size=6),
    loss=st.none() | st.tuples(st.floats(0.1, 5), st.integers(0, 3)),
)
def test_a_recording_of_moves_and_role_changes_makes_the_same_decisions(seed, aborts, switches, loss):
    workload = rows(seed, count=40)
    arrived = {number: row.arrival_ns for number, row in enumerate(workload)}
    faults = [(max(int(s * S), arrived[r] + 1), Aborted(r)) for s, r in aborts]
    faults += [(int(s * S), Reassign(instance, role)) for s, instance, role in switches]
    # In the end both kinds of instances can prefill and decode, so that nobody waits for ever.
    faults += [(6 * S, Reassign(0, Role.MIXED)), (6 * S, Reassign(1, Role.ELASTIC))]
    if loss is not None:
        lost_ns, instance = int(loss[0] * S), loss[1]
        faults += [(lost_ns, WorkerLost(instance, 0)), (lost_ns + S // 2, WorkerUp(instance, 1, TIGHT.slots))]
    live = record(HYBRID, workload, faults)
    assert len(ends(live)) == len(workload)
    recorded, again = Recorded(live), []
    keep = [lambda now_ns, event, commands: again.append(Entry(now_ns, event, tuple(commands)))]
    World(GlobalManager(HYBRID.config), recorded, keep).run(recorded.inputs)
    assert again == live


def test_a_slow_network_shows_in_the_second_token_only():
    means = []
    for bandwidth in (50e9, 1e9):
        network = replace(NETWORK, local=Link(bandwidth))
        recorder = Recorder()
        scenario = Scenario(Placement.disaggregated(1, 1), COST, COST.kv_slots(), network=network)
        scenario.run(rows(rate_hz=1.0), [recorder.see])
        summary = Summary.of(recorder.records)
        assert summary.ttft_ms is not None
        assert summary.tpot_ms is not None
        means.append((summary.ttft_ms.mean, summary.tpot_ms.mean))
    assert means[0][0] == pytest.approx(means[1][0], rel=0.01)
    assert means[0][1] < 0.9 * means[1][1]


def test_instances_may_differ_in_slots_and_in_speed():
    slow = Fitted(**{**asdict(FAST), "decode_ns": 2 * FAST.decode_ns})
    scenario = Scenario(
        Placement.disaggregated(1, 1), ByInstance({0: FAST, 1: slow}), {0: 4096, 1: 2048}, network=NETWORK
    )
    entries = record(scenario, rows(count=5, rate_hz=0.2))
    assert [e.event.slots for e in entries if isinstance(e.event, WorkerUp)] == [4096, 2048]
    found = Fitted.fit(timings(entries))
    assert found.decode_ns == pytest.approx(slow.decode_ns, rel=0.01)


@pytest.mark.parametrize(
    ("placement", "network", "message"),
    [
        (Placement.disaggregated(1, 1), None, "network"),
        (Placement.disaggregated(2, 0), NETWORK, "one that decodes"),
        (Placement(), NETWORK, "prefills"),
    ],
)
def test_a_scenario_that_could_serve_nothing_is_refused(placement, network, message):
    with pytest.raises(UserError, match=message):
        Scenario(placement, COST, 1024, network=network)
