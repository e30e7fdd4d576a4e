"""How fast keys and values go between two workers of this host, and what checksums cost.

Two stores in one process, joined by a real link: through shared memory, NIXL (if installed) and the
connection, with and without checksums, blocks as they lie (pages of 16) and token by token (pages of 1).
SmolLM2-135M's sizes.
"""

import importlib.util
import itertools
import queue
import statistics
from typing import NoReturn

import claim
import numpy as np
import torch

from plait.model.pool import KvPool
from plait.spec.move import Move
from plait.spec.shape import LayerShape, ModelShape
from plait.spec.step import Extent, Span
from plait.worker.config import LinkConfig, Way
from plait.worker.copy_lane import CopyLane
from plait.worker.lender import Lender
from plait.worker.progress import Progress
from plait.worker.store import Store
from plait.worker.way import Ways
from plait.worker.wire import Message, Pull, Pulled, Source

SECRET = b"a secret that only this file has"
LAYER = LayerShape(heads=9, kv_heads=3, head_dim=64, hidden=576, ffn=1536)
TOKENS, PAGE = 1024, 16
BAR_GBPS = 0.5
"""At this speed the 23 KB of a token take 0.05 ms."""
WAYS = {Way.SHARED: "shared memory", Way.NIXL: "NIXL", Way.FRAMES: "a signed connection"}
SHAPE = ModelShape((LAYER,) * 30, vocab=1, hidden=576, max_tokens=8192)


def measure(tokens: int, page: int, repeats: int, config: LinkConfig) -> list[float]:
    """Bytes a nanosecond (GB/s) of each of some moves, slowest first."""
    pools = [KvPool(SHAPE, tokens, page, torch.bfloat16) for _ in range(2)]
    for pool in pools:
        for kv in pool.layers:
            kv.view(torch.uint8).fill_(1)
    shard = Store.whole_shard(pools[0])
    stores = [Store(pool, shard) for pool in pools]
    lender = Lender(Ways(config, b"0.1"), stores[0], Progress(), SECRET, b"0.1", "127.0.0.1")
    answers: queue.SimpleQueue[Message] = queue.SimpleQueue()
    lane = CopyLane(Ways(config, b"1.1"), stores[1], SECRET, b"1.1", answers.put)
    lender.start()
    lane.start()
    order = np.random.default_rng(0).permutation(tokens // page)
    extents = tuple(Extent(int(at) * page, page) for at in order)
    speeds = []
    for id in range(repeats + 1):
        move = Move(id, 1, tokens, Span(0, 0, extents), Span(1, 0, extents[::-1]))
        lane.pull(Pull(move, (Source(b"0.1", lender.address, shard),)))
        answer = answers.get()
        assert isinstance(answer, Pulled), answer
        speeds.append(answer.wire_bytes / answer.busy_ns)
    lane.close()
    lender.close()
    return sorted(speeds[1:])  # the first one makes the link


def part(page: int, way: Way, checksum: bool, repeats: int) -> claim.Claim:
    """One way to travel."""
    speeds = measure(TOKENS, page, repeats, LinkConfig(ways=(way,), checksum=checksum))
    sums = "with" if checksum else "without"
    what = f"GB/s of {TOKENS} tokens through {WAYS[way]}, pages of {page}, {sums} checksums"
    median = statistics.median(speeds)
    if page == PAGE and way is Way.SHARED and checksum:
        return claim.Claim(what, median, BAR_GBPS, median >= BAR_GBPS, (speeds[0], speeds[-1]))
    return claim.reported(what, median, (speeds[0], speeds[-1]))


def main() -> NoReturn:
    """Measure every way."""
    options = claim.arguments(__doc__)
    repeats = 5 if options.quick else 25
    ways = [way for way in Way if way is not Way.NIXL or importlib.util.find_spec("nixl")]
    cases = itertools.product((PAGE, 1), ways, (True, False))
    parts = [part(page, way, checksum, repeats) for page, way, checksum in cases]
    claim.finish("moves", claim.together("keys and values between two workers of a host", parts), options)


if __name__ == "__main__":
    main()
