"""Traces are read exactly, complained about clearly, and generated as asked."""

from pathlib import Path

import numpy as np
import pytest

from plait.spec.errors import UserError
from plait.workload import arrivals, lengths
from plait.workload.trace import (
    FORMATS,
    TraceRow,
    at_rate,
    read_sharegpt,
    read_trace,
    stretched,
)

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "traces"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="the published traces are not in ../shared/data")

GOOD = {
    "csv": "arrival_s,prompt_tokens,output_tokens\n10.5,3,4\n10.25,1,2\n",
    "azure": "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 18:17:04.2500000,3,4\n2023-11-16 18:17:04.0000000,1,2\n",
    "burstgpt": "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5.25,GPT-4,3,4,7,Conversation log\n5,ChatGPT,1,2,3,API log\n6,ChatGPT,9,0,9,API log\n",
    "vidur": "arrived_at,num_prefill_tokens,num_decode_tokens\n0.25,3,4\n0,1,2\n",
}


@pytest.mark.parametrize("form", GOOD)
def test_csv_formats_are_sorted_and_start_at_zero(tmp_path, form):
    path = tmp_path / "trace"
    path.write_text(GOOD[form])
    assert read_trace(path, form) == [TraceRow(0, 1, 2), TraceRow(250_000_000, 3, 4)]
    assert read_trace(path, form, limit=1) == [TraceRow(0, 1, 2)]


def test_mooncake_blocks_become_finer_hashes(tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_text(
        '{"timestamp": 7, "input_length": 700, "output_length": 5, "hash_ids": [0, 3]}\n'
        '{"timestamp": 9, "input_length": 512, "output_length": 1, "hash_ids": [0]}\n'
    )
    first, second = read_trace(path, "mooncake")
    assert (first.arrival_ns, second.arrival_ns) == (0, 2_000_000)
    assert first.hashes(512) == (0,)
    assert len(first.hashes(16)) == 700 // 16
    assert first.hashes(16)[:32] == second.hashes(16) == tuple(range(32))
    assert first.hashes(16)[32] == 96
    with pytest.raises(UserError, match="cannot be cut"):
        first.hashes(100)
    assert TraceRow(0, 5, 5).hashes(16) == ()


def test_simdistserves_own_workloads_are_read(tmp_path):
    path = tmp_path / "w.json"
    path.write_text(
        '[{"start_time": 1.5, "prompt_len": 3, "output_len": 4},'
        ' {"start_time": 1.25, "prompt_len": 1, "output_len": 2}]'
    )
    assert read_trace(path, "distserve") == [TraceRow(0, 1, 2), TraceRow(250_000_000, 3, 4)]


def test_sharegpt_counts_with_the_tokenizer_it_is_given(tmp_path):
    path = tmp_path / "s.json"
    path.write_text(
        '[{"conversations": [{"from": "human", "value": "a b c d e"}, {"from": "gpt", "value": "f g"}]},'
        ' {"conversations": [{"from": "gpt", "value": "x"}]}, {"conversations": []}]'
    )
    assert read_trace(path, "sharegpt") == [TraceRow(0, 3, 1)]
    assert read_sharegpt(path, lambda text: len(text.split())) == [TraceRow(0, 5, 2)]


@pytest.mark.parametrize(
    ("form", "text", "message"),
    [
        (
            "csv",
            "arrival_s,prompt_tokens\n1,2\n",
            "line 1: expected the columns .*'output_tokens' is missing",
        ),
        ("csv", "arrival_s,prompt_tokens,output_tokens\n1,2,3\n1,x,3\n", "line 3: expected arrival_s"),
        ("csv", "arrival_s,prompt_tokens,output_tokens\n1,2,3\nnow,2,3\n", "line 3"),
        ("csv", "arrival_s,prompt_tokens,output_tokens\n1,2\n", "line 2"),
        ("csv", "arrival_s,prompt_tokens,output_tokens\n1,0,3\n", "line 2.*at least 1"),
        ("csv", "arrival_s,prompt_tokens,output_tokens\n", "no requests"),
        ("azure", "TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,1\n", "line 2.*isoformat"),
        ("mooncake", '{"timestamp": 1}\n', "line 1.*KeyError: 'hash_ids'"),
        ("mooncake", "{}\n{\n", "line 1"),
        ("sharegpt", "{}", "list of conversations"),
        ("sharegpt", '[{"conversations": [{"from": "human"}]}]', "conversation 1.*'value'"),
        ("csv", "arrival_s,prompt_tokens,output_tokens\ninf,2,3\n", "line 2.*OverflowError"),
        (
            "mooncake",
            '{"timestamp": 1, "input_length": 600, "output_length": 1, "hash_ids": [1]}\n',
            "line 1.*512",
        ),
        ("distserve", '[{"start_time": 1, "prompt_len": 3}]', "request 1.*'output_len'"),
        ("distserve", "{}", "list of requests"),
        ("parquet", "", "known are csv"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path, form, text, message):
    path = tmp_path / "trace"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_trace(path, form)


def test_a_missing_file_is_a_users_error(tmp_path):
    for form in FORMATS:
        with pytest.raises(UserError, match="cannot read"):
            read_trace(tmp_path / "absent", form)


def test_time_is_stretched_to_a_rate():
    rows = [TraceRow(at, 1, 1) for at in (0, 100, 500)]
    assert [row.arrival_ns for row in stretched(rows, 2.5)] == [0, 250, 1250]
    assert [row.arrival_ns for row in at_rate(rows, 4.0)] == [0, 100_000_000, 500_000_000]
    with pytest.raises(UserError, match="no arrival times"):
        at_rate(rows[:1], 4.0)


@needs_data
@pytest.mark.parametrize(
    ("name", "form", "count", "prompt_mean", "output_mean"),
    [
        ("AzureLLMInferenceTrace_code.csv", "azure", 8819, 2047.8, 27.9),
        ("AzureLLMInferenceTrace_conv.csv", "azure", 19366, 1154.7, 211.1),
        ("mooncake_conversation_trace.jsonl", "mooncake", 12031, 12035, 343),
        ("mooncake_synthetic_trace.jsonl", "mooncake", 3993, 15325, 149),
    ],
)
def test_published_traces_have_their_published_figures(name, form, count, prompt_mean, output_mean):
    rows = read_trace(DATA / name, form)
    assert len(rows) == count
    assert np.mean([row.prompt_tokens for row in rows]) == pytest.approx(prompt_mean, rel=1e-3)
    assert np.mean([row.output_tokens for row in rows]) == pytest.approx(output_mean, rel=5e-3)
    assert 1000e9 < rows[-1].arrival_ns < 3700e9


def _gaps(times) -> np.ndarray:
    assert times[0] == 0
    return np.diff(times) / 1e9


def test_arrival_processes_have_the_rate_and_the_variation_that_was_asked_for():
    rng = np.random.default_rng(1)
    assert np.ptp(arrivals.constant(8, 100)) == 99 / 8 * 1e9
    for cv, times in ((1, arrivals.poisson(rng, 8, 40_000)), (2, arrivals.gamma(rng, 8, 2, 40_000))):
        gaps = _gaps(times)
        assert gaps.mean() == pytest.approx(1 / 8, rel=0.03)
        assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.03)
    together = arrivals.bursts(rng, 8, 5, 20_000)
    assert len(together) == 20_000
    assert len(np.unique(together)) == 4_000
    assert np.ptp(together) / 1e9 == pytest.approx(20_000 / 8, rel=0.05)


def test_lengths_follow_their_distributions():
    rng = np.random.default_rng(2)
    assert set(lengths.fixed(7, 3).tolist()) == {7}
    spread = lengths.uniform(rng, 3, 6, 5000)
    assert sorted(set(spread.tolist())) == [3, 4, 5, 6]
    skewed = lengths.lognormal(rng, 300, 0.8, 4000, 40_000)
    assert skewed.mean() == pytest.approx(300, rel=0.02)
    assert skewed.std() == pytest.approx(240, rel=0.05)
    rows = [TraceRow(0, 10, 1), TraceRow(0, 20, 2)]
    picked = lengths.resampled(rng, rows, 1000)
    assert 400 < picked.count(rows[0]) < 600
    assert picked.count(rows[0]) + picked.count(rows[1]) == 1000
    assert lengths.workload(np.array([0, 5]), np.array([1, 2]), np.array([3, 4])) == [
        TraceRow(0, 1, 3),
        TraceRow(5, 2, 4),
    ]


def test_the_same_seed_gives_the_same_workload():
    first, second = (arrivals.gamma(np.random.default_rng(3), 2, 1.5, 50) for _ in range(2))
    assert (first == second).all()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda rng: arrivals.poisson(rng, 0, 5),
        lambda rng: arrivals.gamma(rng, 1, 0, 5),
        lambda rng: arrivals.bursts(rng, 1, 0, 5),
        lambda rng: lengths.fixed(0, 5),
        lambda rng: lengths.uniform(rng, 5, 4, 5),
        lambda rng: lengths.lognormal(rng, 5, 0, 5, 5),
    ],
)
def test_impossible_workloads_are_refused(wrong):
    with pytest.raises(UserError):
        wrong(np.random.default_rng(0))
