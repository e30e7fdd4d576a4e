"""Rows that share KV over several instances go on, however many prompts come."""

from itertools import pairwise

import pytest

from plait.cost.by_group import ByGroup
from plait.cost.fitted import Fitted
from plait.serving.elasticity import ElasticConfig
from plait.serving.manager import ManagerConfig
from plait.sim.scenario import Scenario
from plait.spec.cluster import Instance, Placement, Role
from plait.workload.result import Recorder
from plait.workload.trace import TraceRow

MS = 1_000_000
TIMES = ByGroup({n: Fitted(10e6, 0.15e6 / n, 50.0 / n, 0.0, 12e6, 2e3, 0.25e6) for n in (1, 2)})


@pytest.mark.parametrize(("objective", "most_ms"), [({"tpot_ns": 60e6}, 1800), ({}, 400)])
def test_a_row_whose_master_is_full_goes_on_while_prompts_come(objective, most_ms):
    """A long prompt has room on both instances only; then short ones keep these busy all the time. With an
    objective for the mean time between tokens its row may wait for as long as it is ahead of it."""
    config = ManagerConfig(elastic=ElasticConfig(TIMES.widths, 16e6, chunk_ns=300e6, **objective))
    pair = Placement(tuple(Instance(i, Role.ELASTIC) for i in range(2)))
    rows = [TraceRow(0, 6000, 60)]
    rows += [TraceRow(1500 * MS + 13 * MS * at, 100, 1) for at in range(800)]
    recorder = Recorder()
    Scenario(pair, TIMES, 4096, config).run(rows, [recorder.see])
    (long,) = [record for record in recorder.records if record.id == 0]
    assert long.completed
    gaps_ns = [later - sooner for sooner, later in pairwise(long.token_ns)]
    assert max(gaps_ns) < most_ms * MS
