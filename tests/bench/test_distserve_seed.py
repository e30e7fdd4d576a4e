"""The released simulator's decisions, as a core: two requests by hand, and a pipeline."""

import sys
from pathlib import Path

import pytest

from plait.workload.trace import TraceRow

sys.path.append(str(Path(__file__).parents[2] / "bench"))

from distserve_seed import SeedPlan, seed_run

MS = 1e6


def test_prompts_are_packed_and_rows_decode_together():
    """The second and third prompt come while the first is computed: they go as one batch."""
    rows = [TraceRow(0, 512, 1), TraceRow(1_000_000, 100, 1), TraceRow(2_000_000, 200, 1)]
    first, second, third = seed_run(SeedPlan("opt-13b", (1, 1), (1, 1)), rows)
    alone_ms = 18.1025465 + 0.101912257 * 512 + 7.12226431e-06 * 512**2 + 1 + 2 + 0.0512
    packed_ms = 18.1025465 + 0.101912257 * 300 + 7.12226431e-06 * (100**2 + 200**2) + 1 + 2 + 0.03
    assert first.ttft_ns / MS == pytest.approx(alone_ms, abs=1e-3)
    assert second.ttft_ns / MS == pytest.approx(alone_ms + packed_ms - 1, abs=1e-3)
    assert third.token_ns[0] == second.token_ns[0]
    decode_ms = 19.9347026 + 0.000626935652 * 513 + 0.0385069774 + 2 + 0.0512
    assert first.tpot_ns / MS == pytest.approx(decode_ms, abs=1e-3)
    assert second.token_ns == third.token_ns


@pytest.mark.parametrize("decode", [None, (1, 2)])
def test_pipelines_finish_every_request(decode):
    rows = [TraceRow(20_000_000 * i, 300 + i, 1 + i % 7) for i in range(40)]
    records = seed_run(SeedPlan("opt-13b", (1, 2), decode), rows)
    assert [record.id for record in records] == list(range(40))
    assert [len(record.token_ns) for record in records] == [row.output_tokens + 1 for row in rows]
