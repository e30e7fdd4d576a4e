"""What a run left behind, or still writes, as the dashboard's source: read by and by, looked back in."""

import json
from dataclasses import asdict

import pytest

from plait.cost.fitted import Fitted
from plait.cost.reading import StatedReading
from plait.rlhf.core import Tail
from plait.server.dash import recorded
from plait.server.dash.recorded import RecordedSource
from plait.serving.manager import ManagerConfig
from plait.sim.copies import Network
from plait.sim.rollout import RolloutScenario, SampleLength
from plait.sim.scenario import Scenario
from plait.spec.cluster import Link, Placement
from plait.spec.errors import UserError
from plait.spec.slo import Slo
from plait.workload.board.board import Board, BoardConfig
from plait.workload.board.sheet import decode
from plait.workload.board.showing import picture_of
from plait.workload.journal import Journal, read_journal
from plait.workload.profile import Profile
from plait.workload.result import Recorder, Summary

COST = Fitted(2e6, 1e4, 0.0, 0.0, 5e6, 100.0, 2e4)
SLO = Slo(100_000_000, 10_000_000)
NETWORK = Network(1 << 16, Link(50e9, 10_000), Link(25e9, 20_000))


@pytest.fixture
def journal(tmp_path):
    """Of a simulated run of two instances that prefill and decode apart."""
    path = tmp_path / "journal.jsonl"
    scenario = Scenario(Placement.disaggregated(1, 1), COST, 4096, ManagerConfig(model="tiny"), NETWORK)
    rows = Profile("poisson", 40.0, 60, "10-300", "1-50", seed=1).rows()
    meta = {"world": "sim", "plait": "0", "model": "tiny"}
    with Journal(path, asdict(scenario.config), meta) as written:
        scenario.run(rows, [written.append])
    return path


async def test_a_whole_journal_is_what_a_summary_says(journal):
    source = RecordedSource(journal, SLO)
    await source.refresh()
    sheet = decode(source.sheet())
    assert (sheet.title, sheet.world, sheet.film.read) == ("tiny", "sim", 1.0)
    recorder = Recorder()
    for entry in read_journal(journal).entries:
        recorder.see(entry.now_ns, entry.event, entry.commands)
    summary, totals = Summary.of(recorder.records, SLO), sheet.picture.totals
    assert (totals.arrived, totals.completed) == (summary.requests, summary.completed)
    assert totals.attainment == summary.attainment
    assert totals.goodput == pytest.approx(summary.goodput)
    phases = {phase for row in sheet.picture.requests for _, phase in row.phases}
    assert {"prefill", "decode", "move"} <= phases


async def test_a_journal_is_followed_while_it_is_written(journal, tmp_path):
    whole = journal.read_bytes()
    growing = tmp_path / "growing.jsonl"
    growing.write_bytes(whole[:20])
    source = RecordedSource(growing)
    await source.refresh()
    assert decode(source.sheet()).picture is None
    shown = 0
    for share in (0.2, 0.5, 0.8, 1.0):
        growing.write_bytes(whole[: int(share * len(whole))])
        await source.refresh()
        arrived = decode(source.sheet()).picture.totals.arrived
        assert arrived > shown or share == 1.0
        shown = arrived
    assert shown == 60


async def test_an_earlier_moment_is_as_it_was(journal):
    source = RecordedSource(journal, SLO)
    await source.refresh()
    end_us = decode(source.sheet()).picture.now_us
    entries = read_journal(journal)
    for share in (0.0, 0.3, 0.7, 1.0):
        past = decode(source.past(int(share * end_us))).picture
        board = Board(BoardConfig.of(entries.config, SLO))
        for entry in entries.entries:
            if entry.now_ns // 1000 >= past.now_us:
                break
            board.see(entry.now_ns, entry.event, entry.commands)
        assert past.totals == picture_of(board).totals
        assert past.now_us <= max(share * end_us, 1)


async def test_pictures_are_thinned(journal, monkeypatch):
    monkeypatch.setattr(recorded, "PICTURES", 8)
    source = RecordedSource(journal)
    await source.refresh()
    times = [picture.now_us for picture in source._recording.pictures]
    assert 4 <= len(times) <= 8
    assert times == sorted(times)
    assert times[-1] > 0.6 * decode(source.sheet()).picture.now_us


async def test_damage_is_said(journal, tmp_path):
    damaged = tmp_path / "damaged.jsonl"
    damaged.write_bytes(journal.read_bytes()[:5000] + b"\n[1,2\n")
    source = RecordedSource(damaged)
    with pytest.raises(UserError, match=r"damaged.jsonl, line \d+"):
        await source.refresh()
    assert "line" in decode(source.failed("line 3 is bad")).fault


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="nothing to show"):
        RecordedSource(tmp_path)
    with pytest.raises(UserError, match="nothing to show"):
        RecordedSource(tmp_path / "absent")


async def test_a_folder_of_align_shows_its_newest_journal_and_its_metrics(journal, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "journal-000000.jsonl").write_bytes(journal.read_bytes()[:3000])
    (folder / "metrics.jsonl").write_text('{"iteration": 0, "score": 1.5, "kl": null}\n{"iteration": 1')
    source = RecordedSource(folder)
    await source.refresh()
    first = decode(source.sheet())
    assert first.alignment.iterations == (0,)
    assert first.alignment.curves == {"score": (1.5,), "kl": (None,)}
    (folder / "journal-000001.jsonl").write_bytes(journal.read_bytes())
    (folder / "metrics.jsonl").write_text('{"iteration": 0, "score": 1.5}\n{"iteration": 1, "score": 2.0}\n')
    place = {"cat": "train", "pid": 0, "tid": 0, "ph": "X"}
    events = [
        {"name": "actor F0", **place, "ts": 1.0, "dur": 10.0},
        {"name": "actor F0", **place, "ts": 9e5, "dur": 10.0},
        {"name": "critic B1", **place, "ts": 9e5 + 12, "dur": 5.0},
    ]
    (folder / "timeline.json").write_text(json.dumps({"traceEvents": events}))
    await source.refresh()
    second = decode(source.sheet())
    assert second.picture.totals.arrived == 60 > first.picture.totals.arrived
    assert second.alignment.curves == {"score": (1.5, 2.0)}
    assert second.alignment.ranks[0].bars == ((0, 10, "actor", "F"), (12, 5, "critic", "B"))


async def test_damaged_metrics_and_labels_name_their_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 0}\n{"score": 1}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2"):
        await RecordedSource(tmp_path).refresh()
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "labels.jsonl").write_text('{"policy": {}}\n')
    with pytest.raises(UserError, match=r"labels\.jsonl, line 1"):
        await RecordedSource(tmp_path).refresh()


async def test_a_search_is_shown_by_the_bits_it_keeps(tmp_path):
    def label(score, **units):
        policy = {"v": 1, "units": units}
        told = {"space": "s", "policy": policy, "fidelity": "L0", "protocol": "p", "seed": 0, "v": 1}
        return json.dumps({**told, "metric": {"score": score}, "seconds": 2.0}) + "\n"

    chosen = {"a": {"weight_bits": 4.0}, "b": {"weight_bits": 4.0, "prune": 0.5}, "kv": {"kv_bits": 8.0}}
    (tmp_path / "labels.jsonl").write_text(
        label(1.0, a={"weight_bits": 2.0}) + label(0.5, a={"weight_bits": 4.0}) + label(2.0, **chosen)
    )
    (tmp_path / "best.json").write_text(json.dumps({"v": 1, "units": chosen}))
    source = RecordedSource(tmp_path)
    await source.refresh()
    trials = decode(source.sheet()).trials
    assert trials.kept_bits == (2.0, 4.0, 3.0)
    assert (trials.best, trials.chosen, trials.labels, trials.seconds) == ((0, 2), 2, 3, 6.0)


async def test_an_iteration_of_rlhf_is_followed(tmp_path):
    path = tmp_path / "journal-000000.jsonl"
    placed = Scenario(Placement.colocated(4), COST, 1 << 14, ManagerConfig(page=4), NETWORK)
    reading = StatedReading(token_ns=400_000, piece_ns=1e6, load_ns=20e6)
    samples = [SampleLength(16, each) for each in (*[30] * 60, 300, 320)]
    with Journal(path, asdict(placed.config), {"world": "sim"}) as written:
        RolloutScenario(placed, reading, max_tokens=512).run(samples, Tail(6, 1), [written.append])
    source = RecordedSource(tmp_path)
    await source.refresh()
    picture = decode(source.sheet()).picture
    assert (picture.rollout.finished, picture.rollout.scored) == (62, picture.rollout.batches) == (62, 62)
    assert (picture.rollout.tail, picture.rollout.kept) == (6, 1)
    kinds = {kind for lane in picture.lanes for _, _, kind, _ in (*lane.compute, *lane.copy)}
    assert {"score", "decode", "move"} <= kinds
    assert any("samples are drawn meanwhile" in remark.text for remark in picture.log)
