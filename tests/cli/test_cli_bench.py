"""`plait simulate`, `replay` and `bench serve`, as a user calls them."""

import asyncio
import json

import pytest
from aiohttp.test_utils import TestServer
from typer.testing import CliRunner

from plait.cli.main import app
from plait.spec.errors import UserError
from tests.client.peer import Peer

SIMULATE = "simulate --instances 2 --rate 8 --num-prompts 30 --slo ttft=200ms,tpot=50ms"


def run(command: str):
    result = CliRunner().invoke(app, command.split())
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_a_simulation_its_journal_and_its_replay_agree(tmp_path):
    journal, trace, result = tmp_path / "j.jsonl", tmp_path / "t.json", tmp_path / "r.json"
    told = run(f"{SIMULATE} --journal {journal} --perfetto {trace} --json {result}")
    assert told.exit_code == 0
    assert "TTFT" in told.stdout
    assert "30 of 30" in told.stdout
    simulated = json.loads(result.read_text())
    assert simulated["summary"]["completed"] == 30
    assert simulated["meta"]["profile"]["rate_hz"] == 8
    assert json.loads(trace.read_text())["traceEvents"]
    again = run(
        f"replay {journal} --check --slo ttft=200ms,tpot=50ms --perfetto {tmp_path / 'u.json'} --json -"
    )
    assert "replay to identical commands" in again.stderr
    assert json.loads(again.stdout)["summary"] == simulated["summary"]
    assert json.loads((tmp_path / "u.json").read_text()) == json.loads(trace.read_text())


def test_a_journal_that_was_tampered_with_does_not_check(tmp_path):
    journal = tmp_path / "j.jsonl"
    run(f"{SIMULATE} --journal {journal} --json -")
    journal.write_text(journal.read_text().replace('"max_tokens":128', '"max_tokens":127', 1))
    with pytest.raises(UserError, match="does not replay: entry"):
        run(f"replay {journal} --check")


def test_simulate_takes_a_fitted_cost_and_a_config(tmp_path):
    (tmp_path / "config.json").write_text(
        '{"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 100}'
    )
    names = ("prefill_token", "prefill_square", "prefill_cached", "decode_context", "decode_row")
    zeros = {f"{name}_ns": 0 for name in names} | {"prefill_ns": 1e6, "decode_ns": 1e6}
    (tmp_path / "cost.json").write_text(json.dumps(zeros))
    options = "--profile constant --rate 1 --num-prompts 3 --output-len 11"
    told = run(f"simulate --model {tmp_path} --cost {tmp_path / 'cost.json'} {options} --json -")
    summary = json.loads(told.stdout)["summary"]
    assert summary["ttft_ms"]["p50"] == pytest.approx(1, abs=0.01)
    assert summary["tpot_ms"]["p99"] == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("simulate", "needs a rate"),
        ("simulate --rate 1 --device tpu", "known are a100-80g"),
        ("simulate --rate 1 --slo ttft=1", "200ms"),
        ("simulate --rate 1 --profile trace", "needs a trace file"),
        ("simulate --rate 1 --profile uniform", "known are poisson"),
        ("simulate --rate 1 --input-len many", "write 128"),
        ("simulate --rate 1 --model opt-13b --device cpu-core", "more devices"),
        ("simulate --rate 1 --cost nowhere.json", "DEVICE/MODEL"),
        ("replay absent.jsonl", "cannot read the journal"),
        ("bench serve --url http://127.0.0.1:1 --model m --profile closed", "--concurrency"),
    ],
)
def test_mistakes_are_answered_with_what_to_do(command, message):
    with pytest.raises(UserError, match=message):
        run(command)


async def test_bench_serve_measures_a_server(tmp_path):
    result = tmp_path / "out.json"
    async with TestServer(Peer().app()) as server:
        target = f"--url {server.make_url('/')} --model tiny --ignore-eos"
        load = "--profile gamma --rate 200 --num-prompts 8 --input-len 5-9 --output-len 4"
        out = f"--slo ttft=30s,tpot=10s --json {result}"
        told = await asyncio.to_thread(run, f"bench serve {target} {load} {out}")
    assert "8 of 8" in told.stdout
    assert "100.0%" in told.stdout
    found = json.loads(result.read_text())
    assert found["summary"]["output_tokens"] == 32
    assert found["meta"]["token_ids"] is True


async def test_bench_serve_names_what_failed():
    async with TestServer(Peer(fault="busy").app()) as server:
        told = await asyncio.to_thread(
            run, f"bench serve --url {server.make_url('/')} --model tiny --rate 200 --num-prompts 4"
        )
    assert "ended: error" in told.stdout
    assert "HTTP 503: the queue is full" in told.stderr
