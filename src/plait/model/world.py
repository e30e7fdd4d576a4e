"""`World`: the processes of one instance in one epoch, joined by gloo over loopback and by shared memory.

Sums are made in the order of ranks, so every rank has the same bits and no sum depends on what else is in the
batch. Every wait ends: with what was waited for, or with a `WorldError` that says who waited for whom and for
what. A world is never repaired: its processes leave, and the next epoch makes a new one.
"""

import os
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from enum import IntEnum
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributed import FileStore, PrefixStore, ProcessGroupGloo, Store

from plait.kernels.choice import choose
from plait.model.config import Rank
from plait.model.shared_sum import SharedSum, share
from plait.spec.errors import ServiceError


class WorldError(ServiceError):
    """Another process of the instance is gone, silent or out of step: the instance cannot go on."""


class Tag(IntEnum):
    """What a message between stages carries."""

    ACTIVATIONS = 1
    TOKENS = 2


class World:
    """One process's end. Only one thread may use it."""

    def __init__(self, rank: Rank, store: str, patience_s: float) -> None:
        """Meet the other processes.

        Args:
            store: path of a file that only these processes know; the first to come makes it.
            patience_s: longest wait for another process.

        Raises:
            WorldError: they do not all come.
        """
        self.rank, self._patience = rank, timedelta(seconds=patience_s)
        self._sent: deque[tuple[Any, Tensor, str]] = deque()
        self._begin(lambda: self._meet(store), "meeting the others")
        self._gather(self._pipe, torch.zeros(1), rank.size, "meeting the others")
        if rank.index == 0:
            os.unlink(store)  # all have met
        self._shared = self._share()

    def _meet(self, path: str) -> None:
        rank = self.rank
        store = FileStore(path, rank.size)
        store.set_timeout(self._patience)
        self._store = store
        self._pipe = self._group(PrefixStore("pipe", store), rank.index, rank.size)
        self._columns = self._group(PrefixStore(f"stage {rank.stage}", store), rank.column, rank.tp)

    def _group(self, store: Store, index: int, size: int) -> ProcessGroupGloo:
        options = ProcessGroupGloo._Options()
        options._devices = [ProcessGroupGloo.create_device(hostname="127.0.0.1")]
        options._timeout = self._patience
        return ProcessGroupGloo(store, index, size, options)

    def _share(self) -> SharedSum | None:
        """Sums through shared memory; None where there are no native kernels."""
        rank = self.rank
        if choose().native is None or rank.tp == 1:
            return None
        gather = partial(self._gather, self._columns, size=rank.tp, what="sharing memory")
        return share(rank.column, rank.tp, gather, self._patience.total_seconds())

    @property
    def plays(self) -> bool:
        """What stands between a step's native calls is native as well: tapes can hold it."""
        return self.rank.pp == 1 and self._shared is not None

    def sum(self, x: Tensor) -> Tensor:
        """The sum of `x` over the processes that share this stage's layers, the same bits on each."""
        what = f"sum over the ranks of stage {self.rank.stage}"
        if self._shared is not None:
            return self._begin(partial(self._shared, x), what)
        first, *others = self._gather(self._columns, x, self.rank.tp, what)
        total = first.float()
        for part in others:
            total += part
        return total.to(x.dtype)

    def _gather(self, group: ProcessGroupGloo, x: Tensor, size: int, what: str) -> list[Tensor]:
        mine = x.contiguous()
        parts = [torch.empty_like(mine) for _ in range(size)]
        work = self._begin(lambda: group.allgather([[_bytes(p) for p in parts]], [_bytes(mine)]), what)
        self._wait(work, what)
        return parts

    def send(self, x: Tensor, stage: int, tag: Tag) -> None:
        """Send to the process with the same share of another stage, which may take it later."""
        peer, kept = self.rank.of_stage(stage), x.contiguous()
        what = f"send to rank {peer}, tag {tag.name}"
        self._sent.append(
            (self._begin(lambda: self._pipe.send([_bytes(kept)], peer, int(tag)), what), kept, what)
        )
        self._settle(2 * self.rank.pp)

    def close(self) -> None:
        """Returns when all that was sent has been taken."""
        self._settle(0)

    def _settle(self, left: int) -> None:
        while len(self._sent) > left:
            work, _, what = self._sent.popleft()
            self._wait(work, what)

    def receive(self, x: Tensor, stage: int, tag: Tag) -> Tensor:
        """Fill `x`, which is dense, with what that stage sent next; returns it."""
        self.expect(x, stage, tag)()
        return x

    def expect(self, x: Tensor, stage: int, tag: Tag) -> Callable[[], None]:
        """As `receive`, but only the returned function waits."""
        peer = self.rank.of_stage(stage)
        what = f"receive from rank {peer}, tag {tag.name}"
        work = self._begin(lambda: self._pipe.recv([_bytes(x)], peer, int(tag)), what)
        return lambda: self._wait(work, what)

    def _begin(self, operation: Callable[[], Any], what: str) -> Any:
        try:
            return operation()
        except RuntimeError as error:
            raise self._error(what, error) from error

    def _wait(self, work: Any, what: str) -> None:
        try:
            work.wait(self._patience)
        except RuntimeError as error:
            raise self._error(what, error) from error

    def _error(self, what: str, error: Exception) -> WorldError:
        limit = f"within {self._patience.total_seconds():g} s"
        return WorldError(
            f"rank {self.rank.index} of {self.rank.size}: {what} did not end well {limit}: {error}"
        )


def _bytes(x: Tensor) -> Tensor:
    """What lies in a dense tensor: gloo does not know every type."""
    return x.view(-1).view(torch.uint8)
