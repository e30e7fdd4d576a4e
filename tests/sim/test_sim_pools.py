"""Elastic pools apart in virtual time: every request ends once, every token is accounted for."""

import math
import random

import pytest

from plait.cost.by_group import llama_8b
from plait.cost.fitted import Fitted
from plait.serving.elasticity import ElasticConfig
from plait.serving.handover import HandoverConfig
from plait.serving.manager import GlobalManager, ManagerConfig
from plait.sim.copies import Copies, Network
from plait.sim.scenario import Scenario
from plait.sim.workers import Arrival, VirtualWorkers
from plait.sim.world import World
from plait.spec.cluster import Instance, Link, Placement, Role
from plait.spec.command import End, Token
from plait.spec.errors import UserError
from plait.spec.event import Arrived, WorkerLost, WorkerUp
from plait.spec.move import Move
from plait.spec.request import EndReason, Request
from plait.spec.step import Step
from plait.workload.trace import TraceRow

COST = llama_8b(Fitted(0, 0, 0, 0, 9e6, 82.0, 2e4))
NETWORK = Network(131_072, Link(300e9, 20_000), Link(25e9, 30_000))
F, G = Role.ELASTIC_PREFILL, Role.ELASTIC_DECODE


def placement(prefill=4, decode=4):
    return Placement(tuple(Instance(i, F if i < prefill else G) for i in range(prefill + decode)))


def trace(count, longs, seed=3):
    """Two requests a second, log-uniform up to 4,000 tokens; every `longs`-th has 100,000."""
    rng, now, rows = random.Random(seed), 0.0, []
    for number in range(1, count + 1):
        now += rng.expovariate(2.0)
        short = int(math.exp(rng.uniform(math.log(100), math.log(4000))))
        prompt = short if number % longs else 100_000
        rows.append(TraceRow(int(now * 1e9), prompt, max(1, int(rng.expovariate(1 / 50)))))
    return rows


class Tally:
    """What is said of each request."""

    def __init__(self):
        self.tokens, self.ends, self.moved, self.groups = {}, {}, {}, {F: set(), G: set()}

    def see(self, now_ns, event, commands):
        for command in commands:
            if isinstance(command, Token):
                for request in command.requests:
                    assert request not in self.ends
                    self.tokens[request] = self.tokens.get(request, 0) + 1
            elif isinstance(command, End):
                assert command.request not in self.ends
                self.ends[command.request] = command
            elif isinstance(command, Move):
                self.moved[command.request] = self.moved.get(command.request, 0) + command.count
            elif isinstance(command, Step):
                prompts = any(row.given for row in command.rows)
                self.groups[F if prompts else G].add(command.group)


def test_all_requests_are_computed_in_one_pool_and_answered_in_the_other():
    rows, tally = trace(80, 12), Tally()
    config = ManagerConfig(elastic=ElasticConfig(COST.widths, chunk_ns=0.3e9))
    Scenario(placement(), COST, 400_000, config, NETWORK).run(rows, [tally.see])
    assert sorted(tally.ends) == list(range(len(rows)))
    for request, row in enumerate(rows):
        assert tally.ends[request].tokens == tally.tokens[request] == row.output_tokens
        assert tally.moved.get(request, 0) == (row.prompt_tokens if row.output_tokens > 1 else 0)
    assert max(map(len, tally.groups[F])) > 1
    assert all(max(group) < 4 for group in tally.groups[F])
    assert all(min(group) >= 4 for group in tally.groups[G])


def test_prompts_larger_than_an_instance_spread_over_both_pools():
    rows, tally = trace(10, 5), Tally()
    config = ManagerConfig(elastic=ElasticConfig(COST.widths, chunk_ns=0.3e9))
    Scenario(placement(), COST, 40_000, config, NETWORK).run(rows, [tally.see])
    assert sorted(tally.ends) == list(range(len(rows)))
    assert max(map(len, tally.groups[G])) >= 3


@pytest.mark.parametrize("seed", range(4))
def test_no_slot_is_left_when_instances_come_and_go(seed):
    rows, rng, tally = trace(40, 8, seed), random.Random(seed), Tally()
    config = ManagerConfig(
        elastic=ElasticConfig(COST.widths, chunk_ns=0.3e9),
        handover=HandoverConfig(pulls=2),
        placement=placement(3, 3),
        retries=8,
    )
    core = GlobalManager(config)
    arrivals = [
        Arrival(row.arrival_ns, Request(i, row.prompt_tokens, row.output_tokens), row.output_tokens)
        for i, row in enumerate(rows)
    ]
    inputs = [(0, WorkerUp(i, 0, 150_000)) for i in range(6)]
    for epoch in range(12):
        at_ns, instance = rows[-1].arrival_ns * (epoch + 1) // 13, rng.randrange(6)
        last = max(up.epoch for _, up in inputs if up.instance == instance)
        inputs.append((at_ns, WorkerLost(instance, last)))
        inputs.append((at_ns + 10**8, WorkerUp(instance, last + 1, 150_000)))
    inputs += [(each.at_ns, Arrived(each.request)) for each in arrivals]
    hands = VirtualWorkers(COST, arrivals, Copies(NETWORK, {}))
    World(core, hands, (tally.see,)).run(inputs)
    assert sorted(tally.ends) == list(range(len(rows)))
    done = [end for end in tally.ends.values() if end.reason is EndReason.LENGTH]
    assert len(done) > len(rows) / 2
    assert all(end.tokens == rows[end.request].output_tokens for end in done)
    assert core.quiet
    core.ledger.check()


def test_pools_need_each_other_and_a_network():
    with pytest.raises(UserError, match="elastic instance that prefills and one that decodes"):
        Scenario(Placement((Instance(0, F), Instance(1, Role.MIXED))), COST, 1000, network=NETWORK)
    with pytest.raises(UserError, match="network"):
        Scenario(placement(), COST, 1000)
