"""Faults on purpose, at every stage of requests' lives: what callers get is exact, or an error within 30 s.

In virtual time: workers lost and back, steps and moves that fail, moves that come late, callers that leave,
deadlines, roles that change, clocks that jump, at a load that is borne and at three times as much, in mixed,
disaggregated, tp and pp, elastic and pooled placements. Every call of the core is audited.
"""

import claim
from chaos.simulated import simulated


def main() -> None:
    options = claim.arguments(__doc__)
    least = 300 if options.quick else 1000
    found = simulated(least, options.seed)
    parts = found.claims("simulated", least)
    for each in found.wrong[:20]:
        print(each)
    claim.finish("chaos", claim.together("faults on purpose: exact, or an error in time", parts), options)


if __name__ == "__main__":
    main()
