"""Replanning live: roles change under way, and every request gets the tokens that it would have got."""

import asyncio
from dataclasses import replace
from functools import partial

import pytest

from plait.cost.fitted import Fitted
from plait.cost.step_profile import StepProfile
from plait.planner.errand import Errand
from plait.planner.monitor import Monitor, MonitorConfig
from plait.planner.roles import RolesConfig
from plait.runtime.ask import Ask
from plait.runtime.away import away
from plait.runtime.replanner import Replanner
from plait.serving.manager import ManagerConfig
from plait.spec.cluster import Placement, Role
from plait.spec.errors import UserError
from plait.spec.event import Arrived
from plait.spec.slo import Slo
from plait.workload.trace import TraceRow
from tests.runtime.test_engine import GREEDY, answers, collect, engine_of, prompt, until

pytestmark = pytest.mark.usefixtures("quick_workers")

LONG = replace(GREEDY, max_tokens=40)


class AfterSome:
    """Says that the workload changed after six arrivals, until that is accepted."""

    def __init__(self):
        self.arrived, self.accepted = 0, 0

    def see(self, now_ns, event, commands):
        self.arrived += isinstance(event, Arrived)

    def shifted(self, now_ns):
        return self.arrived >= 6 and not self.accepted

    def accept(self, now_ns):
        self.accepted += 1

    def rows(self):
        return []


async def replanned(folder, plan):
    """Serve with one instance for each phase; returns the answers, the final roles and the replanner."""
    settings = {"instances": 2, "manager": ManagerConfig(placement=Placement.disaggregated(1, 1))}
    async with engine_of(folder, **settings) as engine:
        watch = AfterSome()
        replanner = Replanner(engine, watch, plan, look_ns=0)
        found = await answers(engine, 12, LONG)
        if not watch.accepted:
            await until(engine, lambda: watch.accepted)
        await replanner.close()
        assert watch.accepted == 1
        return found, [engine.core.roster.role(i) for i in range(2)], replanner


async def test_roles_change_with_requests_in_flight(tiny_llama):
    async with engine_of(tiny_llama) as engine:
        expected = await answers(engine, 12, LONG)

    async def mixed(rows, present):
        assert present == Placement.disaggregated(1, 1)
        return Placement.colocated(2)

    found, roles, replanner = await replanned(tiny_llama, mixed)
    assert found == expected
    assert roles == [Role.MIXED, Role.MIXED]
    assert replanner.changes == 1


async def test_without_a_plan_all_stays_as_it_is(tiny_llama):
    async with engine_of(tiny_llama) as engine:
        expected = await answers(engine, 12, LONG)

    async def none(rows, present):
        raise UserError("nothing meets the objectives")

    found, roles, replanner = await replanned(tiny_llama, none)
    assert found == expected
    assert roles == [Role.PREFILL, Role.DECODE]
    assert replanner.changes == 0


S = 1_000_000_000
CLUSTER = "nodes: 1\ndevices_per_node: 3\ndevice: cpu-core\nlocal_gbps: 80\n"
# A prompt's token takes as long as a row's step: what prompts ask for depends on how long they are.
SLOW = Fitted(1e6, 1e6, 0.0, 0.0, 1e6, 0.0, 1e6)


class BySeconds:
    """The monitor, on a clock that goes on by a second with each arrival: no test depends on real time."""

    def __init__(self):
        self.monitor = Monitor(MonitorConfig(window_ns=30 * S, least=10, patience_ns=20 * S))
        self.now_ns = 0
        self.shifts = 0

    def see(self, now_ns, event, commands):
        self.now_ns += S if isinstance(event, Arrived) else 1
        self.monitor.see(self.now_ns, event, commands)

    def shifted(self, now_ns):
        shifted = self.monitor.shifted(self.now_ns)
        self.shifts += shifted
        return shifted

    def accept(self, now_ns):
        self.monitor.accept(self.now_ns)

    def rows(self):
        return self.monitor.rows()


@pytest.fixture
def errand(tmp_path, tiny_llama):
    (tmp_path / "c.yaml").write_text(CLUSTER)
    StepProfile("tiny", "none", 1, "float32", 256, SLOW, ()).save(tmp_path / "p.json")
    files = str(tiny_llama), str(tmp_path / "c.yaml")
    wanted = Slo.parse("ttft=2s,tpot=30ms"), str(tmp_path / "p.json")
    placement = Placement.disaggregated(1, 2)
    return Errand(
        *files, *wanted, ManagerConfig(placement=placement), 1024, RolesConfig(requests=100, runs=4)
    )


async def serve(engine, lengths, limit=8):
    """Answers to requests of (prompt tokens, output tokens), `limit` of them in flight at a time."""
    gate = asyncio.Semaphore(limit)

    async def one(number, prompt_tokens, output_tokens):
        async with gate:
            sampling = replace(GREEDY, max_tokens=output_tokens, seed=number)
            return (await collect(engine.submit(Ask(prompt(number, prompt_tokens), sampling))))[1]

    return await asyncio.gather(*(one(n, *each) for n, each in enumerate(lengths)))


async def test_another_workload_leads_to_other_roles_with_requests_in_flight(tiny_llama, errand):
    answers_long, prompts_long = [(8, 40)] * 60, [(200, 4)] * 120
    async with engine_of(tiny_llama) as engine:
        expected = await serve(engine, answers_long + prompts_long)
    async with engine_of(tiny_llama, instances=3, manager=errand.manager) as engine:
        watch = BySeconds()
        replanner = Replanner(engine, watch, partial(away, errand), look_ns=0)
        serving = asyncio.create_task(serve(engine, answers_long + prompts_long))
        await until(engine, lambda: watch.shifts)
        assert engine.core.lives  # requests are in flight while the roles are looked for
        assert await serving == expected
        await replanner.idle()
        roles = [engine.core.roster.role(i) for i in range(3)]
        await replanner.close()
    assert replanner.changes >= 1
    assert sum(role.prefills for role in roles) > 1


async def test_roles_that_cannot_be_say_why(errand):
    hasty = replace(errand, slo=Slo.parse("ttft=1ms,tpot=1ms"))
    with pytest.raises(UserError, match="no roles of these instances"):
        await away(hasty, [TraceRow(0, 100, 10)], errand.manager.placement)
