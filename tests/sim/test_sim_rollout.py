"""Generation and scoring in virtual time: what overlaps is won, and recordings walk the same road."""

from dataclasses import asdict, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.cost.fitted import Fitted
from plait.cost.reading import Readers, StatedReading, stated
from plait.rlhf.core import SERIAL, RlhfCore, Tail
from plait.serving.manager import GlobalManager, ManagerConfig
from plait.sim.copies import Copies, Network
from plait.sim.recorded import Recorded
from plait.sim.rollout import RolloutScenario, SampleLength
from plait.sim.scenario import Scenario
from plait.sim.workers import Arrival, VirtualWorkers
from plait.sim.world import World
from plait.spec.cluster import Link, Placement
from plait.spec.command import Score
from plait.spec.errors import UserError
from plait.spec.event import Arrived, Rollout, Scored, WorkerLost, WorkerUp
from plait.spec.request import Request
from plait.workload.journal import Entry, Journal, read_journal, replay
from plait.workload.timeline import timeline

MS = 1_000_000
COST = Fitted(2e6, 1e4, 0.0, 0.0, 5e6, 100.0, 2e4)
READING = StatedReading(token_ns=400_000, piece_ns=1e6, load_ns=20e6)
NETWORK = Network(1 << 16, Link(50e9, 10_000), Link(25e9, 20_000))


def scenario(instances=4, network=NETWORK):
    placed = Scenario(Placement.colocated(instances), COST, 1 << 14, ManagerConfig(page=4), network)
    return RolloutScenario(placed, READING, max_tokens=512)


def samples(*lengths):
    return [SampleLength(16, each) for each in lengths]


def recorded(told, tail):
    entries = []
    times = scenario().run(
        told, tail, [lambda *call: entries.append(Entry(call[0], call[1], tuple(call[2])))]
    )
    return times, entries


LONG = samples(*[30] * 100, 400, 420, 450, 500)


def test_serial_stages_take_generation_and_then_inference():
    times, entries = recorded(LONG, SERIAL)
    work_ns = READING.token_ns * sum(each.prompt + each.response for each in LONG) / 4
    assert times.moves == 0
    assert times.scoring_ns >= times.drawn_ns
    assert times.scored_ns - times.drawn_ns >= work_ns
    assert len({c.instance for e in entries for c in e.commands if isinstance(c, Score)}) == 4


def test_fused_stages_hide_inference_behind_the_tail():
    serial, _ = recorded(LONG, SERIAL)
    fused, entries = recorded(LONG, Tail(4, 1))
    assert fused.moves > 0
    assert fused.scoring_ns < fused.drawn_ns
    assert fused.scored_ns < 0.92 * serial.scored_ns
    told = [c.why for e in entries for c in e.commands if isinstance(c, Score)]
    assert any("drawn meanwhile on 1 instances" in why for why in told)


def test_instances_that_run_dry_score_although_none_is_freed():
    serial, _ = recorded(LONG, SERIAL)
    dry, _ = recorded(LONG, Tail(16, 4))
    assert dry.moves == 0
    assert dry.scored_ns < serial.scored_ns


def test_a_tail_without_a_network_is_refused():
    with pytest.raises(UserError, match="network"):
        scenario(network=None).run(LONG, Tail(4, 1))


def test_a_journal_of_an_iteration_replays(tmp_path):
    told = scenario()
    config = asdict(told.scenario.config)
    with Journal(tmp_path / "journal", config, {}) as journal:
        told.run(LONG, Tail(4, 1), [journal.append])
    history = read_journal(tmp_path / "journal")
    assert any(isinstance(entry.event, Scored) for entry in history.entries)
    assert replay(RlhfCore(GlobalManager(told.scenario.config)), history.entries) is None
    slices = [each for each in timeline(history.entries).events if each.get("cat") == "score"]
    assert sum(each["args"]["batches"] for each in slices) == len(LONG)
    assert all(each["dur"] > 0 and each["args"]["why"] for each in slices)


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=16),
    left=st.integers(0, 16),
    kept=st.integers(1, 3),
    lost_ms=st.none() | st.integers(0, 400),
    readers=st.integers(1, 3),
)
def test_a_recording_walks_the_same_road_and_losses_change_no_result(lengths, left, kept, lost_ms, readers):
    told = samples(*lengths)
    arrivals = [Arrival(0, Request(i, each.prompt, 512), each.response) for i, each in enumerate(told)]
    inputs = [(0, WorkerUp(i, 0, 4096)) for i in range(3)]
    inputs += [(0, Rollout(tuple(range(len(told))), 2, left, kept, readers))]
    inputs += [(0, Arrived(each.request)) for each in arrivals]
    if lost_ms is not None:
        inputs += [(lost_ms * MS, WorkerLost(1, 0)), ((lost_ms + 30) * MS, WorkerUp(1, 1, 4096))]

    def run(hands, events):
        entries = []
        core = RlhfCore(GlobalManager(ManagerConfig(page=4)))
        World(core, hands, [lambda *call: entries.append(Entry(call[0], call[1], tuple(call[2])))]).run(
            events
        )
        return core, entries

    hands = VirtualWorkers(COST, arrivals, Copies(NETWORK, {}), replace(READING, shares=(0.3,) * readers))
    core, entries = run(hands, inputs)
    assert core.manager.quiet
    assert not core.lent
    answered = {entry.event.score for entry in entries if isinstance(entry.event, Scored)}
    scores = [c for entry in entries for c in entry.commands if isinstance(c, Score)]
    scored = [
        (batch, reader)
        for score in scores
        if score.id in answered
        for batch in score.batches
        for reader in score.readers
    ]
    assert sorted(scored) == [(b, r) for b in range(-(-len(told) // 2)) for r in range(readers)]
    again = Recorded(entries)
    assert run(again, again.inputs)[1] == entries


def test_instances_that_are_lent_draw_again_where_nobody_else_can():
    arrivals = [Arrival(0, Request(i, each.prompt, 512), each.response) for i, each in enumerate(LONG)]
    inputs = [(0, WorkerUp(i, 0, 1 << 14)) for i in range(3)]
    inputs += [(0, Rollout(tuple(range(len(LONG))), 1, 4, 1)), *((0, Arrived(a.request)) for a in arrivals)]
    core, kept = RlhfCore(GlobalManager(ManagerConfig(page=4))), []

    def note(now_ns, event, commands):
        if core.lent and not kept:
            kept.extend(i for i in range(3) if i not in core.lent)

    World(core, VirtualWorkers(COST, arrivals, Copies(NETWORK, {}), READING), [note]).run(inputs, 500 * MS)
    assert len(kept) == 1
    core, scored = RlhfCore(GlobalManager(ManagerConfig(page=4))), []
    lost = [(500 * MS, WorkerLost(kept[0], 0))]
    hands = VirtualWorkers(COST, arrivals, Copies(NETWORK, {}), READING)
    World(core, hands, [lambda now, event, _: scored.append(isinstance(event, Scored))]).run([*inputs, *lost])
    assert core.manager.quiet
    assert not core.lent
    assert any(scored)


def test_a_line_through_two_pieces_gives_back_what_models_take():
    found = stated(Readers((COST, COST), 7), 100)
    assert found.token_ns == pytest.approx(2 * COST.prefill_token_ns)
    assert found.piece_ns == pytest.approx(2 * COST.prefill_ns, rel=1e-3)
    assert found.load_ns == 7
    assert found.shares == (0.5, 0.5)


def test_the_last_batch_is_read_by_several_instances_at_once():
    told = replace(scenario(), reading=replace(READING, shares=(0.25, 0.25, 0.5)), readers=3)
    scores = []

    def note(now_ns, event, commands):
        scores.extend(command for command in commands if isinstance(command, Score))

    apart = told.run(LONG, Tail(4, 1), [note])
    together = scenario().run(LONG, Tail(4, 1))
    last = [score for score in scores if score.batches == scores[-1].batches]
    assert sorted(reader for score in last for reader in score.readers) == [0, 1, 2]
    assert len({score.instance for score in last}) == 3
    assert apart.scored_ns < together.scored_ns
