"""`Store`: a worker's KV pool as its peers see it, in the model's layers and heads whatever part is here."""

import numpy as np
from numpy.typing import NDArray

from plait.kernels import transfer
from plait.model.pool import KvPool
from plait.spec.errors import ServiceError
from plait.worker.layout import Interval, Shard

BLOCK = 16
"""Tokens of a block that can be copied as it lies."""


class StoreError(ServiceError):
    """Somebody asks for keys and values that are not here."""


class Store:
    """Copies between the pool and bytes on the way. `whole`: in the form of blocks, else of slots; see
    `plait.kernels.transfer`. Layers follow one another in the bytes."""

    def __init__(self, pool: KvPool, shard: Shard) -> None:
        """`pool` has the layers and heads of `shard`, in order."""
        assert len(pool.layers) == len(shard.layers), "not the layers of this pool"
        self.pool, self.shard = pool, shard
        forms = dict.fromkeys(map(transfer.form_of, pool.layers, pool.head_sizes))
        self.form = ", ".join(forms)
        """Stores of equal forms may exchange whole blocks."""
        self.element = str(pool.layers[0].dtype)
        """Type of the elements; stores that differ in it exchange nothing."""
        self.blocked = pool.page % BLOCK == 0
        """Its pages are whole blocks."""

    @staticmethod
    def whole_shard(pool: KvPool) -> Shard:
        """That of a worker which is an instance by itself."""
        heads = {kv.shape[1] for kv in pool.layers}
        return Shard(Interval(0, len(pool.layers)), Interval(0, max(heads)))

    def layer_bytes(self, heads: Interval, tokens: int, whole: bool) -> int:
        """Bytes of so many tokens of a layer; the largest one's where they differ."""
        if whole:
            blocks = -(-tokens // BLOCK)
            return max(blocks * transfer.block_bytes(kv, len(heads)) for kv in self.pool.layers)
        sizes = zip(self.pool.layers, self.pool.head_sizes, strict=True)
        return max(transfer.slots_bytes(kv, size, len(heads), tokens) for kv, size in sizes)

    def copy(
        self,
        layers: Interval,
        heads: Interval,
        slots_T: NDArray[np.int32],
        room: transfer.Bytes,
        *,
        whole: bool,
        out: bool,
    ) -> int:
        """Copy tokens into `room` (`out`) or from it; returns how many of its bytes they are.

        Raises:
            StoreError: there are no such layers, heads or slots here, or they do not fit the room.
        """
        self._check(layers, heads, slots_T, whole)
        past = 0
        first_head = heads.first - self.shard.heads.first
        for layer in range(layers.first, layers.past):
            index = layer - self.shard.layers.first
            kv, size = self.pool.layers[index], self.pool.head_sizes[index]
            begin = past
            if whole:
                blocks_B = slots_T[::BLOCK] // BLOCK
                past += len(blocks_B) * transfer.block_bytes(kv, len(heads))
                self._fits(past, room)
                transfer.copy_blocks(kv, blocks_B, first_head, len(heads), room[begin:past], out=out)
            else:
                past += transfer.slots_bytes(kv, size, len(heads), len(slots_T))
                self._fits(past, room)
                transfer.copy_slots(kv, size, slots_T, first_head, len(heads), room[begin:past], out=out)
        return past

    def _check(self, layers: Interval, heads: Interval, slots_T: NDArray[np.int32], whole: bool) -> None:
        shard = self.shard
        if not layers or layers & shard.layers != layers or not heads or heads & shard.heads != heads:
            raise StoreError(f"layers {layers} and heads {heads} are not among {shard}")
        if not len(slots_T) or slots_T.min() < 0 or slots_T.max() >= self.pool.slots:
            raise StoreError(f"slots are not of this pool of {self.pool.slots}")
        if whole and (not self.blocked or (slots_T[::BLOCK] % BLOCK).any()):
            raise StoreError("whole blocks are asked for, but slots are not aligned to them")

    @staticmethod
    def _fits(past: int, room: transfer.Bytes) -> None:
        if past > len(room):
            raise StoreError(f"{past} bytes do not fit the room of {len(room)}")
