"""Faults on purpose, at every stage of requests' lives: what callers get is exact, or an error within 30 s.

In virtual time: workers lost and back, steps and moves that fail, moves that come late, callers that leave,
deadlines, roles that change, clocks that jump, at a load that is borne and at three times as much, in mixed,
disaggregated, tp and pp, elastic and pooled placements. Every call of the core is audited.

Live: worker processes with a tiny model that are killed, stopped, or cut off from their driver, and callers
that leave, three times as many as there is room for. Every answer is held against the tokens of one process.
"""

import asyncio
import logging
import sys
import tempfile
from pathlib import Path

import claim

sys.path.append(str(Path(__file__).parents[1]))

from chaos.live import SIZES, live
from chaos.simulated import simulated
from tests.tiny import tiny_folder


def main() -> None:
    options = claim.arguments(__doc__)
    logging.disable(logging.WARNING)  # lost workers are what is wanted here
    virtual, real = (200, 25) if options.quick else (1000, 200)
    there = simulated(virtual, options.seed)
    with tempfile.TemporaryDirectory() as root:
        here = asyncio.run(live(tiny_folder(Path(root), **SIZES), real, options.seed))
    for each in [*there.wrong, *here.wrong][:20]:
        print(each)
    parts = there.claims("simulated", virtual) + here.claims("live", real)
    claim.finish("chaos", claim.together("faults on purpose: exact, or an error in time", parts), options)


if __name__ == "__main__":
    main()
