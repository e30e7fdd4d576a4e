"""A server under a mixed load for half an hour: does it grow, leak or slow down?

`plait serve` runs as a user starts it, prefill and decode on instances of their own, its dashboard watched.
Callers want whole answers and streams, leave midway, and ask what is refused, at a steady pace; the same plan
again and again, with other tokens. After a warm-up with bursts and at three times the pace:

- memory of all processes together: the 95 % interval of its slope contains 0 or lies below 1 MB a minute
  (blocks of successive changes are drawn, see soak/trend.py);
- open descriptors, when nothing is asked: as many as before;
- slots of KV in use, when nothing is asked: none;
- the 99th percentile of latency, from when a request was due to its end: in the last third at most 1.1 times
  that of the first. A quick run has too few requests for that; there the bar is held against the lower end of
  the interval. What other processes took of the cores is told beside it: measure on a quiet machine.

A full run takes 36 minutes, a quick one 40 s of load and half a minute around it.
"""

import asyncio
import os
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import aiohttp
import claim
import numpy as np

sys.path.append(str(Path(__file__).parents[1]))

from chaos.live import SIZES
from chaos.served import Served, descriptors, others_s, resident_bytes, served
from prometheus_client.parser import text_string_to_metric_families
from soak.load import Load, plan_of, thirds
from soak.trend import ratio as ratio_of
from soak.trend import slope
from tests.tiny import tiny_folder

OPTIONS = ("--prefill", "1", "--decode", "1", "--kv-tokens", "4096", "--threads", "1")
RATE_HZ = 8.0
"""About a third of what two cores bear."""
WARM = 3
"""Times as fast goes the warm-up."""
BURSTS, BURST = 5, 80
"""Before it: so often come so many requests at once, so that the largest steps were seen."""
SLOPE_BAR, RATIO_BAR = 1.0, 1.1
"""MB a minute; 99th percentiles."""
REST_S = 20.0
"""Within so long after the last answer nothing may be held any more."""


@dataclass(frozen=True)
class Course:
    """How long."""

    warm_s: float
    stretch_s: float
    stretches: int
    """Three, or a multiple."""
    sample_s: float
    """Between two looks at memory."""


FULL = Course(warm_s=300, stretch_s=60, stretches=30, sample_s=1.0)
QUICK = Course(warm_s=20, stretch_s=40 / 3, stretches=3, sample_s=0.25)


@dataclass
class Watch:
    """Looks at a server's processes while it serves."""

    server: Served
    period_s: float
    processes: tuple[int, ...] = ()
    bytes: list[int] = field(default_factory=list)
    others_s: list[float] = field(default_factory=list)
    """Of the cores, that went to processes which are none of the server's, and not this one."""

    def __post_init__(self) -> None:
        self.processes = self.server.processes()

    def others(self) -> tuple[float, float]:
        """Cores that others had on average in the first and in the last third: they make latencies longer."""
        third = len(self.others_s) // 3
        spans = self.others_s[: third + 1], self.others_s[-third - 1 :]
        first, last = ((span[-1] - span[0]) / (third * self.period_s) for span in spans)
        return first, last

    async def look(self) -> None:
        """Until it is cancelled, at times that do not drift."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        while True:
            self.bytes.append(resident_bytes(self.processes))
            self.others_s.append(others_s((*self.processes, os.getpid())))
            await asyncio.sleep(max(0.0, began_s + len(self.bytes) * self.period_s - loop.time()))


async def metric(client: aiohttp.ClientSession, name: str) -> float:
    """Sum of a metric's samples, as a scraper reads them. Raises LookupError: there is no such metric."""
    async with client.get("/metrics") as reply:
        families = {family.name: family for family in text_string_to_metric_families(await reply.text())}
    return sum(sample.value for sample in families[name].samples)


async def at_rest(server: Served, expected: int | None) -> tuple[int, float]:
    """Open descriptors and KV slots in use once nothing is asked; waits a while for `expected` and for 0."""
    loop = asyncio.get_running_loop()
    past_s = loop.time() + REST_S
    while True:
        async with aiohttp.ClientSession(server.url) as client:
            used = await metric(client, "plait:instance_kv_used_slots")
        await asyncio.sleep(0.25)  # the server sees that this connection is closed
        found = descriptors(server.processes())
        settled = used == 0 and (expected is None or found == expected)
        if (settled and expected is not None) or loop.time() > past_s:
            return found, used
        expected = found if expected is None else expected


async def stopped(task: asyncio.Future[None]) -> None:
    """Cancel what goes on beside. Raises what it failed with before."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def viewer(url: str) -> None:
    """Watches the dashboard until it is cancelled."""
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(url, timeout=timeout) as client, client.get("/dash/events") as reply:
        async for _ in reply.content.iter_any():
            pass


async def soak(server: Served, course: Course, seed: int) -> list[claim.Claim]:
    """Serve, and hold what was seen against the bars."""
    load = Load(server.url, seed)
    watching = asyncio.ensure_future(viewer(server.url))
    plan = plan_of(course.warm_s, WARM * RATE_HZ, seed + 1)
    for number in range(BURSTS):
        await load.stretch([replace(each, at_s=0.0) for each in plan[:BURST]], -2 - number)
    await load.stretch(plan, -1)
    await stopped(watching)
    load.sent.latencies_s.clear()
    before, _ = await at_rest(server, None)
    watch = Watch(server, course.sample_s)
    looking, watching = asyncio.ensure_future(watch.look()), asyncio.ensure_future(viewer(server.url))
    plan = plan_of(course.stretch_s, RATE_HZ, seed)
    for number in range(course.stretches):
        await load.stretch(plan, number)
    await stopped(looking)
    await stopped(watching)
    after, used = await at_rest(server, before)
    for each in load.sent.wrong[:20]:
        print(each)
    same = server.processes() == watch.processes
    return [
        claim.at_most("requests with a wrong answer", len(load.sent.wrong), 0),
        claim.Claim("requests sent", load.sent.kinds.total(), None, True),
        claim.Claim("processes that are still those of the start", float(same), 1, same),
        *trends(watch, load, course, np.random.default_rng(seed)),
        claim.at_most("descriptors at rest, change", abs(after - before), 0),
        claim.at_most("KV slots in use at rest", used, 0),
    ]


def trends(watch: Watch, load: Load, course: Course, rng: np.random.Generator) -> list[claim.Claim]:
    """Memory and latency."""
    grown = slope(np.array(watch.bytes) / 1e6, course.sample_s / 60, rng)
    first, last = (np.array(each) * 1e3 for each in thirds(load.sent.latencies_s))
    slower = ratio_of(first, last, 99, rng)
    held = slower.value if course is FULL else slower.low
    others = zip(("first", "last"), watch.others(), strict=True)
    return [
        *(claim.Claim(f"cores that others had, {which} third", cores, None, True) for which, cores in others),
        claim.Claim("memory of all processes at the end, MB", watch.bytes[-1] / 1e6, None, True),
        claim.Claim(
            "growth of memory, MB a minute, 95 % interval: contains 0 or lies below",
            grown.value,
            SLOPE_BAR,
            grown.low <= 0 <= grown.high or grown.high < SLOPE_BAR,
            (grown.low, grown.high),
        ),
        claim.Claim(
            "99th percentile of latency, first third, ms", float(np.percentile(first, 99)), None, True
        ),
        claim.Claim(
            "99th percentile of latency, last third over first",
            slower.value,
            RATIO_BAR,
            held <= RATIO_BAR,
            (slower.low, slower.high),
        ),
    ]


def main() -> None:
    options = claim.arguments(__doc__)
    course = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        with served(tiny_folder(root, **SIZES), OPTIONS, root / "log") as server:
            parts = asyncio.run(soak(server, course, options.seed))
    claim.finish("soak", claim.together("nothing grows, leaks or slows down", parts), options)


if __name__ == "__main__":
    main()
