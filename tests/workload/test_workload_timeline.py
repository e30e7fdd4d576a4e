"""The timeline: slices that never overlap in a lane, spans that close, counters that return to zero."""

import json
from collections import defaultdict
from itertools import pairwise

import numpy as np

from plait.spec.command import End, Token
from plait.spec.event import Arrived, StepDone, StepFailed, WorkerLost, WorkerUp
from plait.spec.request import EndReason, Request
from plait.spec.step import Row, Step
from plait.workload.journal import Entry
from plait.workload.timeline import timeline

ENTRIES = [
    Entry(1_000, WorkerUp(0, 0, 64), ()),
    Entry(2_000, Arrived(Request(7, 4, 3)), (Step(1, (0,), (Row(7, 0, 4, draws=True),)),)),
    Entry(2_500, Arrived(Request(8, 2, 3)), (Step(2, (0,), (Row(8, 0, 2, draws=True),)),)),
    Entry(9_000, StepDone(1, (1,)), (Token(1, (7,)), Step(3, (0,), (), again=(7,), context_tokens=5))),
    Entry(11_000, StepFailed(2, "no memory"), (End(8, EndReason.FAILED, 0),)),
    Entry(12_000, StepDone(3, (1,)), (Token(3, (7,)), Step(4, (0,), (), closed=(7,)))),
    Entry(13_000, WorkerLost(0, 0), (End(7, EndReason.FAILED, 2),)),
]


def test_a_small_journal_event_by_event(tmp_path):
    path = tmp_path / "trace.json"
    timeline(ENTRIES).save(path)
    events = json.loads(path.read_text())["traceEvents"]
    slices = [e for e in events if e["ph"] == "X"]
    assert [(e["ts"], e["dur"], e["pid"]) for e in slices] == [(2.0, 7.0, 1), (9.0, 2.0, 1), (11.0, 1.0, 1)]
    assert slices[1]["args"]["failed"] == "no memory"
    assert slices[2]["args"] | {"drawn": 1, "again": 1, "context tokens": 5} == slices[2]["args"]
    assert [(e["id"], e["ph"], e["ts"]) for e in events if e.get("cat") == "request"] == [
        (7, "b", 2.0), (8, "b", 2.5), (7, "n", 9.0), (8, "e", 11.0), (7, "e", 13.0),
    ]  # fmt: skip
    counters = defaultdict(list)
    for e in events:
        if e["ph"] == "C":
            counters[e["pid"], e["name"]].append(tuple(e["args"].values()))
    assert counters[0, "queue"] == [(0, 0), (0, 1), (0, 2), (0, 1), (1, 0), (0, 0)]
    assert counters[1, "KV"] == [(4,), (6,), (7,), (5,), (0,)]
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert names == {0: "requests", 1: "instance 0"}


def test_kv_of_a_step_of_several_rounds_is_that_of_all():
    again = Step(2, (0,), (Row(7, 4, 1, given=False, draws=True),), again=(), repeat=3)
    more = Step(3, (0,), (), again=(7,), context_tokens=8, repeat=2)
    entries = [
        *ENTRIES[:2],
        Entry(9_000, StepDone(1, (1,)), (Token(1, (7,)), again)),
        Entry(9_500, StepDone(2, (3,)), (Token(2, (7,)), more)),
    ]
    kept = [
        tuple(e["args"].values())
        for e in timeline(entries).events
        if (e["ph"], e["pid"], e["name"]) == ("C", 1, "KV")
    ]
    assert kept == [(4,), (7,), (9,)]


def test_slices_of_a_lane_do_not_overlap():
    rng = np.random.default_rng(0)
    entries, now = [], 0
    for number in range(50):
        now += int(rng.integers(1, 100))
        issued = (Step(number, (0, 1), ()),) if number % 2 == 0 else (Step(number, (1,), ()),)
        done = StepDone(number - 3, ()) if number >= 3 else WorkerUp(number, 0, 1)
        entries.append(Entry(now, done, issued))
    lanes = defaultdict(list)
    for event in timeline(entries).events:
        if event["ph"] == "X":
            lanes[event["pid"]].append((event["ts"], event["dur"]))
    for slices in lanes.values():
        for (start, length), (after, _) in pairwise(slices):
            assert start + length <= after + 1e-9
