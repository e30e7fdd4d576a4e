"""Elastic instances in virtual time: long prompts get groups, short ones do not wait for them."""

import math
import random

from plait.cost.by_group import ByGroup, llama_8b
from plait.cost.fitted import Fitted
from plait.search.batching import Width
from plait.serving.elasticity import ElasticConfig
from plait.serving.manager import ManagerConfig
from plait.sim.copies import Network
from plait.sim.scenario import Scenario
from plait.spec.cluster import Instance, Link, Placement, Role
from plait.spec.command import End, Token
from plait.spec.step import Step
from plait.workload.trace import TraceRow

COST = llama_8b(Fitted(0, 0, 0, 0, 9e6, 82.0, 2e4))
WIDTHS = tuple(
    Width(n, model.prefill_ns, model.prefill_token_ns, model.prefill_square_ns)
    for n, model in COST.models.items()
)


def trace(count, longs, seed=3):
    """Two requests a second, log-uniform up to 4,000 tokens; every `longs`-th has 100,000."""
    rng, now, rows = random.Random(seed), 0.0, []
    for number in range(1, count + 1):
        now += rng.expovariate(2.0)
        short = int(math.exp(rng.uniform(math.log(100), math.log(4000))))
        prompt = short if number % longs else 100_000
        rows.append(TraceRow(int(now * 1e9), prompt, max(1, int(rng.expovariate(1 / 50)))))
    return rows


def serve(role, rows, slots=400_000):
    """Seconds to the first token of each request, and the sizes of the groups of steps."""
    first, ends, sizes = {}, [], set()

    def watch(now_ns, event, commands):
        for command in commands:
            if isinstance(command, Token):
                for request in command.requests:
                    first.setdefault(request, now_ns)
            elif isinstance(command, End):
                ends.append(command.request)
            elif isinstance(command, Step):
                sizes.add(len(command.group))

    placement = Placement(tuple(Instance(i, role) for i in range(8)))
    config = ManagerConfig(elastic=ElasticConfig(WIDTHS, chunk_ns=0.3e9))
    Scenario(placement, COST, slots, config).run(rows, [watch])
    assert sorted(ends) == list(range(len(rows)))
    return [(first[i] - row.arrival_ns) / 1e9 for i, row in enumerate(rows)], sizes


def test_groups_compute_long_prompts_much_sooner_and_short_ones_hardly_later():
    rows = trace(60, 12)
    elastic, sizes = serve(Role.ELASTIC, rows)
    replicas, _ = serve(Role.MIXED, rows)
    assert max(sizes) > 1
    longs = [i for i, row in enumerate(rows) if row.prompt_tokens == 100_000]
    shorts = sorted(set(range(len(rows))) - set(longs))
    assert sum(elastic[i] for i in longs) < 0.6 * sum(replicas[i] for i in longs)
    assert sum(elastic[i] for i in shorts) < 1.2 * sum(replicas[i] for i in shorts)


def test_a_request_may_be_larger_than_an_instance():
    seconds, sizes = serve(Role.ELASTIC, trace(10, 5), slots=40_000)
    assert max(sizes) >= 3
    assert max(seconds) < 60


def test_a_row_that_was_to_leave_its_instance_and_stays_goes_on():
    """A long prompt would gain by an instance where a row decodes, but no other one has room for the row."""
    cost = ByGroup({n: Fitted(3e6, 5e4 / n, 4.0 / n, 20.0, 6e6, 300.0, 9e4) for n in (1, 2, 3)})
    placement = Placement(tuple(Instance(i, Role.ELASTIC) for i in range(3)))
    config = ManagerConfig(elastic=ElasticConfig(cost.widths, chunk_ns=20e6, move_token_ns=100.0))
    network = Network(16_384, Link(2e9, 20_000), Link(1e9, 30_000))
    rows = [TraceRow(54_000_000, 2163, 43), TraceRow(131_000_000, 152, 58), TraceRow(254_000_000, 2429, 49)]
    ends = []
    Scenario(placement, cost, 1024, config, network).run(
        rows, [lambda now, event, commands: ends.extend(c for c in commands if isinstance(c, End))]
    )
    assert sorted((end.request, end.tokens) for end in ends) == [(0, 43), (1, 58), (2, 49)]
