"""Replanning live: roles change under way, and every request gets the tokens that it would have got."""

from dataclasses import replace

from plait.runtime.replanner import Replanner
from plait.serving.manager import ManagerConfig
from plait.spec.cluster import Placement, Role
from plait.spec.errors import UserError
from plait.spec.event import Arrived
from tests.runtime.test_engine import GREEDY, answers, engine_of, until

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
    found, roles, replanner = await replanned(tiny_llama, lambda rows: Placement.colocated(2))
    assert found == expected
    assert roles == [Role.MIXED, Role.MIXED]
    assert replanner.changes == 1


async def test_without_a_plan_all_stays_as_it_is(tiny_llama):
    async with engine_of(tiny_llama) as engine:
        expected = await answers(engine, 12, LONG)

    def none(rows):
        raise UserError("nothing meets the objectives")

    found, roles, replanner = await replanned(tiny_llama, none)
    assert found == expected
    assert roles == [Role.PREFILL, Role.DECODE]
    assert replanner.changes == 0
