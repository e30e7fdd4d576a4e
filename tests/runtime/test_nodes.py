"""Workers on several nodes of a Ray cluster: one host that plays three."""

import asyncio
from dataclasses import replace

import pytest

from plait.runtime.ask import Ask
from plait.runtime.fleet import FleetConfig
from plait.serving.manager import ManagerConfig
from plait.spec.cluster import Instance, Placement, Role
from tests.runtime.test_engine import GREEDY, answers, collect, engine_of, prompt, until

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]
COUNT = 6
LONG = FleetConfig(instances=2, pause_ns=1_000_000, silence_ns=20_000_000_000, start_ns=120_000_000_000)


@pytest.fixture(scope="module")
def nodes():
    """A head that computes nothing, and two nodes with a core each."""
    pytest.importorskip("ray", reason="needs the cluster extra")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    cluster.two = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def expected(tiny_llama):
    """Tokens of one worker, a child process."""

    async def run():
        async with engine_of(tiny_llama) as engine:
            return await answers(engine, COUNT)

    return asyncio.run(run())


PAIR = Placement((Instance(0, Role.PREFILL), Instance(1, Role.DECODE)))


@pytest.mark.parametrize("placement", [Placement(), PAIR], ids=["mixed", "prefill and decode"])
async def test_instances_on_two_nodes_answer_as_one_process_does(nodes, tiny_llama, expected, placement):
    cluster = nodes.address
    async with engine_of(
        tiny_llama, fleet=LONG, cluster=cluster, manager=ManagerConfig(placement=placement)
    ) as engine:
        assert await answers(engine, COUNT) == expected
        assert (engine.core.counts.moves > 0) == bool(placement.instances)


async def test_a_node_that_dies_costs_a_pause_and_a_new_one_takes_its_place(nodes, tiny_llama, expected):
    async with engine_of(tiny_llama, fleet=LONG, cluster=nodes.address) as engine:
        await until(engine, lambda: len(engine.core.seats) == 2)
        streams = [engine.submit(Ask(prompt(n), replace(GREEDY, seed=n))) for n in range(COUNT)]
        running = [asyncio.ensure_future(collect(stream)) for stream in streams]
        await until(engine, lambda: any(live.drawn for live in engine.core.lives.values()))
        await asyncio.to_thread(nodes.remove_node, nodes.two.pop())
        found = [tokens for _, tokens, _ in await asyncio.gather(*running)]
        assert found == expected
        nodes.two.append(nodes.add_node(num_cpus=1))
        await until(engine, lambda: len(engine.core.seats) == 2)
        assert await answers(engine, COUNT) == expected


async def test_an_engine_closes_while_a_worker_waits_for_a_node(nodes, tiny_llama, expected):
    async with engine_of(tiny_llama, fleet=LONG, cluster=nodes.address) as engine:
        await until(engine, lambda: len(engine.core.seats) == 2)
        await asyncio.to_thread(nodes.remove_node, nodes.two.pop())
        await until(engine, lambda: len(engine.core.seats) == 1)
        assert await answers(engine, COUNT) == expected
