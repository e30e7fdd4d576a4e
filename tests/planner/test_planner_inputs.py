"""What people get wrong is answered with what would work."""

import pytest

from plait.cost.catalog import device_named, shape_named
from plait.planner.cluster import Cluster, read_cluster
from plait.planner.plans import Plans
from plait.planner.search import Search
from plait.spec.cluster import Link
from plait.spec.errors import UserError
from plait.spec.slo import Slo
from plait.workload.trace import TraceRow

CLUSTER = Cluster(1, 2, device_named("a100-80g"), Link(300e9, 5000), Link(3e9, 30_000))
ROWS = [TraceRow(i * 10**9, 512, 64) for i in range(50)]


def search(rate_hz=1.0, slo="ttft=500ms,tpot=100ms", rows=ROWS):
    return Search(Plans(shape_named("llama-2-7b"), CLUSTER), rows, Slo.parse(slo), rate_hz)


def test_an_unknown_key_is_answered_with_the_nearest(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("nodes: 1\ndevices_per_node: 2\ndevise: h100\n")
    with pytest.raises(UserError, match="did you mean device"):
        read_cluster(path)


def test_infeasible_wishes_say_what_is_feasible():
    with pytest.raises(UserError, match="above 0"):
        search(rate_hz=0.0).run()
    with pytest.raises(UserError, match=r"At best: ttft="):
        search(slo="ttft=1ms,tpot=1ms").run()
    with pytest.raises(UserError, match="fits nowhere"):
        search(rows=[TraceRow(0, 10**6, 1)]).run()
