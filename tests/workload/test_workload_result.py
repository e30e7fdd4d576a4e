"""One schema for predicted and measured runs, against figures worked out by hand."""

import json

import msgspec
import pytest

from plait.spec.command import End, Token
from plait.spec.event import Arrived, StepDone
from plait.spec.request import EndReason, Request
from plait.spec.slo import Slo
from plait.workload.result import Recorder, RequestRecord, Spread, Summary, as_json

MS = 1_000_000
RECORDS = [
    RequestRecord(0, 0, 10, 3, (100 * MS, 120 * MS, 160 * MS), 160 * MS, "length"),
    RequestRecord(1, 100 * MS, 20, 1, (400 * MS,), 400 * MS, "stop"),
    RequestRecord(2, 200 * MS, 30, 0, (), 200 * MS, "queue_full"),
    RequestRecord(3, 300 * MS, 30, 2, (500 * MS, 1000 * MS), 1000 * MS, "aborted"),
]


def test_summary_by_hand():
    summary = Summary.of(RECORDS, Slo(ttft_ns=150 * MS, tpot_ns=30 * MS))
    assert (summary.requests, summary.completed) == (4, 2)
    assert summary.outcomes == {"aborted": 1, "length": 1, "queue_full": 1, "stop": 1}
    assert summary.duration_s == 1.0
    assert (summary.prompt_tokens, summary.output_tokens) == (30, 4)
    assert (summary.request_rate, summary.output_rate) == (2.0, 4.0)
    assert summary.ttft_ms == Spread(200, 200, 280, 298)
    assert summary.tpot_ms == Spread(30, 30, 30, 30)
    assert summary.itl_ms == Spread(30, 30, 38, pytest.approx(39.8))
    assert summary.e2e_ms == Spread(230, 230, 286, pytest.approx(298.6))
    assert summary.attainment == 0.25
    assert summary.goodput == 1.0


def test_objectives_are_joint():
    strict = Summary.of(RECORDS, Slo(ttft_ns=150 * MS, tpot_ns=29 * MS))
    assert strict.attainment == 0.0
    loose = Summary.of(RECORDS, Slo(ttft_ns=300 * MS, tpot_ns=30 * MS))
    assert loose.attainment == 0.5
    assert Summary.of(RECORDS).attainment is None


def test_a_run_in_which_nothing_completed_has_no_latencies():
    summary = Summary.of(RECORDS[2:3], Slo(1, 1))
    assert summary.ttft_ms is summary.tpot_ms is summary.itl_ms is summary.e2e_ms is None
    assert (summary.request_rate, summary.attainment) == (0.0, 0.0)
    assert Summary.of([]).requests == 0


def test_tables_name_every_failure():
    summary = Summary.of(RECORDS, Slo(1, 1))
    names = [name for name, _ in summary.total_rows()]
    assert "ended: queue_full" in names
    assert "ended: aborted" in names
    assert "ended: stop" not in names
    assert names[-2:] == ["SLO attainment", "goodput"]
    assert [name for name, _ in summary.latency_rows()] == ["TTFT", "TPOT", "ITL", "E2E"]


def test_json_carries_the_whole_result():
    found = json.loads(msgspec.json.encode(as_json(Summary.of(RECORDS), RECORDS, {"seed": 3})))
    assert found["meta"] == {"seed": 3}
    assert found["summary"]["ttft_ms"]["p90"] == 280
    assert [request["ttft_ms"] for request in found["requests"]] == [100.0, 300.0, None, None]


def test_recorder_follows_a_core():
    recorder = Recorder()
    recorder.see(5, Arrived(Request(7, 10, 2)), [])
    recorder.see(20, StepDone(1, (1,)), [Token(1, (7,))])
    recorder.see(30, StepDone(2, (1,)), [Token(2, (7,)), End(7, EndReason.LENGTH, 2)])
    recorder.see(40, Arrived(Request(8, 10, 2)), [End(8, EndReason.QUEUE_FULL, 0)])
    assert recorder.records == [
        RequestRecord(7, 5, 10, 2, (20, 30), 30, "length"),
        RequestRecord(8, 40, 10, 0, (), 40, "queue_full"),
    ]
