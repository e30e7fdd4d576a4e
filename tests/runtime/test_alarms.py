"""Alarms ring in the loop, in order, never early, and not once they are cancelled."""

import asyncio

from plait.runtime.alarms import Alarms


async def test_alarms_ring_in_order_and_never_early():
    loop, alarms = asyncio.get_running_loop(), Alarms()
    start_s, rung, last = loop.time(), [], asyncio.Event()
    for part in (3, 1, 2):
        due_s = start_s + part / 500
        alarms.at(due_s, lambda part=part, due_s=due_s: rung.append((part, loop.time() >= due_s)))
    alarms.at(start_s + 4 / 500, last.set)
    await last.wait()
    alarms.close()
    assert rung == [(1, True), (2, True), (3, True)]


async def test_a_cancelled_alarm_and_those_of_closed_ones_are_silent():
    loop, alarms, rung, last = asyncio.get_running_loop(), Alarms(), [], asyncio.Event()
    alarms.at(loop.time() + 0.002, lambda: rung.append("cancelled")).cancel()
    alarms.at(loop.time() + 0.004, last.set)
    await last.wait()
    alarms.at(loop.time() + 0.001, lambda: rung.append("closed"))
    alarms.close()
    after = asyncio.Event()
    loop.call_later(0.005, after.set)
    await after.wait()
    assert rung == []
