"""How fast keys and values go between two workers of this host, and what checksums cost.

Two stores in one process, joined by a real link: through shared memory and through the connection, with and
without checksums, blocks as they lie (pages of 16) and token by token (pages of 1). SmolLM2-135M's sizes.
"""

import argparse
import queue
import statistics
import time

import numpy as np
import torch

from plait.kernels import transfer
from plait.model.pool import KvPool
from plait.spec.move import Move
from plait.spec.shape import LayerShape, ModelShape
from plait.spec.step import Extent, Span
from plait.worker.config import LinkConfig
from plait.worker.copy_lane import CopyLane
from plait.worker.lender import Lender
from plait.worker.progress import Progress
from plait.worker.store import Store
from plait.worker.wire import Message, Pull, Pulled, Source

SECRET = b"a secret that only this file has"
LAYER = LayerShape(heads=9, kv_heads=3, head_dim=64, hidden=576, ffn=1536)
SHAPE = ModelShape((LAYER,) * 30, vocab=1, hidden=576, max_tokens=8192)


def measure(tokens: int, page: int, repeats: int, config: LinkConfig) -> tuple[float, float]:
    """Median milliseconds of a move, and its bytes."""
    pools = [KvPool(SHAPE, tokens, page, torch.bfloat16) for _ in range(2)]
    for pool in pools:
        for kv in pool.layers:
            kv.view(torch.uint8).fill_(1)
    shard = Store.whole_shard(pools[0])
    stores = [Store(pool, shard) for pool in pools]
    lender = Lender(config, stores[0], Progress(), SECRET, b"0.1", "127.0.0.1")
    answers: queue.SimpleQueue[Message] = queue.SimpleQueue()
    lane = CopyLane(config, stores[1], SECRET, b"1.1", answers.put)
    lender.start()
    lane.start()
    order = np.random.default_rng(0).permutation(tokens // page)
    extents = tuple(Extent(int(at) * page, page) for at in order)
    took_ms, wire_bytes = [], 0
    for id in range(repeats + 1):
        move = Move(id, 1, tokens, Span(0, 0, extents), Span(1, 0, extents[::-1]))
        lane.pull(Pull(move, (Source(b"0.1", lender.address, shard),)))
        answer = answers.get()
        assert isinstance(answer, Pulled), answer
        took_ms.append(answer.busy_ns / 1e6)
        wire_bytes = answer.wire_bytes
    lane.close()
    lender.close()
    return statistics.median(took_ms[1:]), wire_bytes


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    data = np.ones(32 << 20, np.uint8)
    begin_s = time.perf_counter()
    transfer.checksum(data)
    print(f"checksum alone: {len(data) / (time.perf_counter() - begin_s) / 1e9:.1f} GB/s")
    print(f"{'page':>4} {'through':>10} {'checksum':>8} {'ms':>8} {'GB/s':>6}   {options.tokens} tokens")
    for page in (16, 1):
        for shared in (True, False):
            for checksum in (True, False):
                config = LinkConfig(shared=shared, checksum=checksum)
                ms, count = measure(options.tokens, page, options.repeats, config)
                way = "memory" if shared else "connection"
                print(f"{page:>4} {way:>10} {checksum!s:>8} {ms:>8.2f} {count / ms / 1e6:>6.2f}")


if __name__ == "__main__":
    main()
