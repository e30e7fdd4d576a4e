"""Workers without models: pools with lenders and copy lanes, joined by real connections, in one process."""

import importlib.util
import os
import queue
from contextlib import contextmanager

import numpy as np
import torch

from plait.kernels import transfer
from plait.model.pool import KvPool
from plait.spec.move import Move
from plait.spec.shape import LayerShape, ModelShape
from plait.spec.step import Extent, Span
from plait.worker.config import LinkConfig, Way
from plait.worker.copy_lane import CopyLane
from plait.worker.layout import Shard
from plait.worker.lender import Lender
from plait.worker.progress import Progress
from plait.worker.store import Store
from plait.worker.way import Ways
from plait.worker.wire import Pull, Source

SECRET = b"0123456789abcdef0123456789abcdef"
SIZE = 16
"""Elements of a head."""
SLOTS = 256


def lacking(way: Way) -> str:
    """Why parts cannot travel so between two processes of this host; empty: they can."""
    if way is Way.SHARED and not hasattr(os, "memfd_create"):
        return "this system has no memory that processes can share"
    if way is Way.NIXL and importlib.util.find_spec("nixl") is None:
        return "nixl is not installed"
    return ""


class Peer:
    """One worker."""

    def __init__(self, name: str, shard: Shard, page: int, dtype=torch.float32, config=None) -> None:
        heads = len(shard.heads)
        layer = LayerShape(heads=heads, kv_heads=heads, head_dim=SIZE, hidden=heads * SIZE, ffn=1)
        shape = ModelShape((layer,) * len(shard.layers), vocab=1, hidden=1, max_tokens=SLOTS)
        self.name, self.shard, self.config = name.encode(), shard, config or LinkConfig(part_bytes=4096)
        self.pool = KvPool(shape, SLOTS, page, dtype)
        for kv in self.pool.layers:
            kv.view(torch.uint8).fill_(0)
        self.store, self.progress = Store(self.pool, shard), Progress()
        self.ways = Ways(self.config, self.name)
        self.lender = Lender(self.ways, self.store, self.progress, SECRET, self.name, "127.0.0.1")
        self.answers: queue.SimpleQueue = queue.SimpleQueue()
        self.lane = CopyLane(self.ways, self.store, SECRET, self.name, self.answers.put)
        self.lender.start()
        self.lane.start()

    @property
    def source(self) -> Source:
        """As others know it."""
        return Source(self.name, self.lender.address, self.shard)

    def wire(self, slots_T, *, write=None):
        """All its keys and values of some slots as bytes; or put there what `write` has."""
        shard = self.shard
        count = self.store.layer_bytes(shard.heads, len(slots_T), False) * len(shard.layers)
        data = np.zeros(count, np.uint8) if write is None else write
        self.store.copy(shard.layers, shard.heads, slots_T, data, whole=False, out=write is None)
        return data.reshape(len(shard.layers), len(shard.heads), -1)

    def answer(self):
        """The next answer to a move."""
        return self.answers.get(timeout=30)

    def close(self) -> None:
        """End its threads."""
        self.lane.close()
        self.lender.close()


@contextmanager
def peers(*made: Peer):
    """Closes them in the end."""
    try:
        yield made
    finally:
        for peer in made:
            peer.close()


def pages(rng, page, positions):
    """Slots for so many positions in random pages, and the extents that name them, to whole pages."""
    chosen = rng.permutation(SLOTS // page)[: -(-positions // page)]
    slots_T = np.concatenate([page * at + np.arange(page) for at in chosen]).astype(np.int32)
    return slots_T, tuple(Extent(int(at) * page, page) for at in chosen)


def fill(rng, tensors):
    """A whole tensor of bytes [layers, heads, bytes of a head] for each pool's part to be cut out of."""
    layers, heads, count = tensors
    return rng.integers(0, 120, (layers, heads, count)).astype(np.uint8)


def head_bytes(pool, tokens):
    """Bytes of one head of a layer in the form of slots."""
    return transfer.slots_bytes(pool.layers[0], SIZE, 1, tokens)


def pull(id, count, source_extents, target_extents, sources, turn=0, after=()):
    """What a driver would send: positions [0, count)."""
    move = Move(id, 1, count, Span(0, 0, source_extents), Span(1, 0, target_extents), after)
    return Pull(move, tuple(sources), turn)
