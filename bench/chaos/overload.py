"""Three times as many requests as a deployment bears, over HTTP, whether or not it has answered."""

import asyncio
import random
import time
from dataclasses import dataclass
from pathlib import Path

import claim

from chaos.callers import Callers, client
from chaos.front import OPTIONS, quiet
from chaos.served import served
from chaos.verdict import Verdict
from plait.runtime.ask import Ask

TIMES = 3
CLOSED = 24
"""Callers that find out what is borne: as many as there are rows."""
LEAST_SHARE = 0.25
"""Of what is borne without overload, at least so much is still served."""


@dataclass
class Overload:
    """What came of it."""

    found: Verdict
    borne_hz: float
    """Requests a second that are answered when callers wait for their answers."""
    sent_hz: float
    served_hz: float
    """Answered in whole, of those sent."""
    refused: int

    def claims(self) -> list[claim.Claim]:
        """Held against bars: nothing is wrong or late, and the surplus is refused."""
        return [
            *self.found.claims("overload", 0)[1:4],
            claim.at_least(
                "overload: requests sent a second, of those borne", self.sent_hz / self.borne_hz, 2.5
            ),
            claim.at_least("overload: requests refused, with Retry-After", self.refused, 1),
            claim.at_least(
                "overload: still served, of those borne", self.served_hz / self.borne_hz, LEAST_SHARE
            ),
            claim.Claim("overload: requests borne a second", self.borne_hz, None, True),
        ]


async def overload(
    folder: Path, root: Path, work: tuple[list[Ask], list[list[int]]], seconds: float, seed: int
) -> Overload:
    """Find out what is borne in a third of `seconds`, then send three times as much for so long."""
    with served(folder, OPTIONS, root / "overload.log") as server:
        async with client() as opened:
            return await _flooded(Callers(opened, server.url, *work), seconds, seed)


async def _flooded(callers: Callers, seconds: float, seed: int) -> Overload:
    rng, due_s = random.Random(seed), 0.0
    await _closed(callers, 1.0)
    callers.found.ends.clear()
    began_s = time.monotonic()
    await _closed(callers, seconds / 3)
    borne_hz = callers.found.ends["length"] / (time.monotonic() - began_s)
    before, refused = callers.found.ends["length"], callers.found.ends["HTTP 503"]
    began_s = time.monotonic()
    tasks: list[asyncio.Task[str]] = []
    while (passed_s := time.monotonic() - began_s) < seconds:
        at, stream = rng.randrange(len(callers.asks)), rng.random() < 0.5
        tasks.append(asyncio.create_task(callers.call(at, stream=stream)))
        due_s += rng.expovariate(TIMES * borne_hz)
        await asyncio.sleep(max(0.0, due_s - passed_s))
    sent_hz = len(tasks) / passed_s
    await asyncio.gather(*tasks)
    spent_s = time.monotonic() - began_s
    await quiet(callers.url, callers.found)
    ends = callers.found.ends
    callers.found.wrong = [f"overload, seed {seed}: {each}" for each in callers.found.wrong]
    served_hz = (ends["length"] - before) / spent_s
    return Overload(callers.found, borne_hz, sent_hz, served_hz, ends["HTTP 503"] - refused)


async def _closed(callers: Callers, seconds: float) -> None:
    """Callers that wait for their answers."""
    callers.enough = False
    tasks = [asyncio.ensure_future(callers.go_on(seed)) for seed in range(CLOSED)]
    await asyncio.sleep(seconds)
    callers.enough = True
    await asyncio.gather(*tasks)
