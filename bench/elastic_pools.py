"""Elastic pools apart, and compaction: goodput beside what they are made of. Simulated.

The world of unified_goodput.py: LLaMA3-8B on 16 A100, lengths of the Azure and the Mooncake conversations,
objectives of five times what a request takes alone. Each policy is tuned on the first half of a trace and
judged on the second.

apart      prefill and decode instances, each alone (DistServe)
elastic    one elastic pool that knows no objectives (LoongServe), with and without compaction
unified    one elastic pool that keeps to objectives, with and without compaction
pools      elastic prefill groups and elastic decode groups in two pools
"""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import claim
from kept import Kept
from llama_world import INSTANCES, TIMES, groups, slots
from unified_goodput import MOVING, SETTINGS, Half, Search, Setting, goodput, tuned

from plait.cost.cost import ByInstance
from plait.serving.elasticity import ElasticConfig
from plait.sim.scenario import Scenario
from plait.spec.cluster import Instance, Placement, Role

COUNT, QUICK = {"azure": 1000, "mooncake": 400}, {"azure": 300, "mooncake": 100}
"""Requests of a run."""


@dataclass(frozen=True)
class Pools(Setting):
    """Prefill groups of `tp`, decode groups of `decode_tp`."""

    def scenario(self, times: float, tpot_ns: float) -> Scenario:
        """See `Setting`."""
        decodes = (INSTANCES - self.prefills * self.tp) // self.decode_tp
        first = [Instance(i, Role.ELASTIC_PREFILL, self.tp) for i in range(self.prefills)]
        then = [Instance(self.prefills + i, Role.ELASTIC_DECODE, self.decode_tp) for i in range(decodes)]
        both = (*first, *then)
        elastic = ElasticConfig(
            groups(self.tp).widths,
            decode_ns=20e6,
            chunk_ns=self.chunk_ns,
            tpot_ns=times * tpot_ns,
            ttft_times=times,
        )
        cost = ByInstance({each.id: groups(each.tp) for each in both})
        room = {each.id: slots(each.tp) for each in both}
        return Scenario(Placement(both), cost, room, self._manager(elastic), MOVING)


def settings(quick: bool) -> list[Setting]:
    """All, or the last of each policy."""
    found = [
        *(each for each in SETTINGS if each.policy in ("apart", "elastic", "unified")),
        *(
            Pools("pools", tp, prefills=n, decode_tp=then, chunk_ns=ns)
            for tp, n, then in ((1, 8, 1), (1, 10, 1), (1, 12, 1), (1, 10, 2), (2, 5, 1), (2, 6, 2))
            for ns in (3e8, 1e9)
        ),
    ]
    last = {kind(each): each for each in found}
    return list(last.values()) if quick else found


def kind(setting: Setting) -> str:
    """What is compared."""
    return f"{setting.policy}, compaction" if setting.moves else setting.policy


def judged(trace: str, quick: bool, seed: int, pool: ProcessPoolExecutor, kept: Kept) -> list[claim.Claim]:
    """Goodput of each policy on a trace."""
    first, second = (Half(trace, later, (QUICK if quick else COUNT)[trace], seed) for later in (False, True))

    def goodputs(half: Half, tried: Sequence[Setting]) -> dict[Setting, Mapping[float, float]]:
        found = kept.map(pool, goodput, [Search(half, (TIMES,), setting) for setting in tried])
        return dict(zip(tried, found, strict=True))

    best = tuned(goodputs(first, settings(quick)), TIMES, kind)
    later = goodputs(second, list(best.values()))
    hz = {policy: later[setting][TIMES] for policy, setting in best.items()}
    parts = [claim.Claim(f"{trace}: {policy}, requests/s", each, None, True) for policy, each in hz.items()]
    ratios = {
        "pools over apart": (hz["pools"], hz["apart"]),
        "pools over unified": (hz["pools"], hz["unified"]),
        "compaction of elastic": (hz["elastic, compaction"], hz["elastic"]),
        "compaction of unified": (hz["unified, compaction"], hz["unified"]),
    }
    for name, (one, other) in ratios.items():
        parts.append(claim.Claim(f"{trace}: {name}", one / other if other else 0.0, None, True))
    return parts


def main() -> None:
    """See the module."""
    given = claim.arguments(__doc__)
    kept = Kept("elastic_pools", "elastic_pools.py", "unified_goodput.py", "llama_world.py")
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        parts = [part for trace in COUNT for part in judged(trace, given.quick, given.seed, pool, kept)]
    claim.finish("elastic_pools", claim.together("elastic pools and compaction, simulated", parts), given)


if __name__ == "__main__":
    main()
