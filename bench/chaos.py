"""Faults on purpose, at every stage of requests' lives: what callers get is exact, or an error within 30 s.

In virtual time: workers lost and back, steps and moves that fail, moves that come late, callers that leave,
deadlines, roles that change, clocks that jump, at a load that is borne and at three times as much, in mixed,
disaggregated, tp and pp, elastic and pooled placements. Every call of the core is audited.

Live: worker processes with a tiny model that are killed, stopped, or cut off from their driver, clocks that
jump, and callers that leave, three times as many as there is room for.

Over HTTP: `plait serve` with prefill and decode apart; callers that read slowly, leave all at once or send
half a request, workers and the server itself killed or stopped, the server started again, a journal whose
disk is full; and three times as many requests as were measured to be borne. Every answer, live and over HTTP,
is held against the tokens of one process.

Alignments whose disk is full in the midst of a checkpoint, which are gone on from (not in a quick run).

A full run takes about 10 minutes on two cores, a quick one about one.
"""

import asyncio
import logging
import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import claim

sys.path.append(str(Path(__file__).parents[1]))

from chaos.disk import disk
from chaos.front import front
from chaos.live import SIZES, alone, asks_of, live
from chaos.overload import overload
from chaos.simulated import simulated
from tests.tiny import tiny_folder
from tests.zygote import Zygote


@dataclass(frozen=True)
class Counts:
    """How many faults, and for how long there are too many requests."""

    virtual: int
    live: int
    front: int
    overload_s: float
    disk: int


FULL = Counts(virtual=1000, live=200, front=60, overload_s=60.0, disk=4)
QUICK = Counts(virtual=200, live=25, front=12, overload_s=4.0, disk=0)


async def real(root: Path, counts: Counts, seed: int) -> tuple[list[str], list[claim.Claim]]:
    """What was wrong with real processes, and the claims."""
    folder, zygote = tiny_folder(root, **SIZES), Zygote()
    try:
        asks = asks_of(random.Random(seed), 16)
        work = asks, await alone(folder, asks, zygote)
        here = await live(folder, work, zygote, counts.live, seed)
    finally:
        zygote.close()
    door = await front(folder, root, work, counts.front, seed)
    flood = await overload(folder, root, work, counts.overload_s, seed)
    parts = [*here.claims("live", counts.live), here.recovered("live")]
    parts += [*door.claims("over HTTP", counts.front), *flood.claims()]
    wrong = [*here.wrong, *door.wrong, *flood.found.wrong]
    if counts.disk:
        full = disk(root / "alignments", counts.disk, seed)
        wrong += full.wrong
        parts += full.claims("alignments", counts.disk)[:2]
    return wrong, parts


def main() -> None:
    options = claim.arguments(__doc__)
    logging.disable(logging.WARNING)  # lost workers are what is wanted here
    counts = QUICK if options.quick else FULL
    there = simulated(counts.virtual, options.seed)
    with tempfile.TemporaryDirectory() as name:
        wrong, here = asyncio.run(real(Path(name), counts, options.seed))
    for each in [*there.wrong, *wrong][:20]:
        print(each)
    parts = [*there.claims("simulated", counts.virtual), there.recovered("simulated"), *here]
    claim.finish("chaos", claim.together("faults on purpose: exact, or an error in time", parts), options)


if __name__ == "__main__":
    main()
