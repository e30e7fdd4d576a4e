"""The serving core in the virtual world: what it promises holds, and its recordings replay."""

from dataclasses import asdict, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.cost.catalog import llama_7b_on_a100
from plait.cost.fitted import Fitted
from plait.serving.admission import AdmissionConfig
from plait.serving.batcher import BatcherConfig
from plait.serving.manager import GlobalManager, ManagerConfig
from plait.sim.measured import timings
from plait.sim.recorded import Recorded
from plait.sim.scenario import Scenario, core_from
from plait.sim.world import World
from plait.spec.cluster import Placement
from plait.spec.command import End
from plait.spec.errors import UserError
from plait.spec.event import Aborted, Stopped, WorkerLost, WorkerUp
from plait.spec.request import EndReason
from plait.workload.journal import Entry, Journal, read_journal, replay
from plait.workload.profile import Profile
from plait.workload.result import Recorder, Summary
from plait.workload.timeline import timeline

S = 1_000_000_000
COST = llama_7b_on_a100()
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
    assert core.config == TIGHT.config
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
    cost = Fitted(3e6, 5e4, 4.0, 20.0, 6e6, 300.0, 9e4)
    scenario = Scenario(Placement.colocated(2), cost, slots=100_000)
    found = Fitted.fit(timings(record(scenario, rows(1, count=150))))
    other = rows(2, count=150)
    truth, guess = (_mean_latency(replace(scenario, cost=model), other) for model in (cost, found))
    assert guess == pytest.approx(truth, rel=0.01)


def _mean_latency(scenario, workload):
    recorder = Recorder()
    scenario.run(workload, [recorder.see])
    spread = Summary.of(recorder.records).e2e_ms
    assert spread is not None
    return spread.mean
