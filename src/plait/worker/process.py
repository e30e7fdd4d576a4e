"""The life of a worker process: load, say hello, carry out orders one after another, leave."""

import contextlib
import gc
import logging
import os
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import torch

from plait.kernels.choice import choose
from plait.model.model import Model
from plait.model.pool import KvPool
from plait.model.weights_file import verified
from plait.model.world import World, WorldError
from plait.spec.adapter import Adapter
from plait.spec.errors import PlaitError
from plait.worker.config import WorkerConfig
from plait.worker.executor import Executor, StepFault
from plait.worker.fabric import Fabric
from plait.worker.layout import Interval, Shard
from plait.worker.line import Line
from plait.worker.member import MemberExecutor
from plait.worker.progress import Progress
from plait.worker.wire import (
    Adapt,
    Answer,
    Fault,
    HasAdapter,
    Hello,
    LacksAdapter,
    Load,
    Loaded,
    LoadFault,
    Order,
    Refusal,
    Unadapt,
)

log = logging.getLogger(__name__)

ORPHANED = 3
"""Exit status of a worker whose driver is gone."""
APART = 4
"""Exit status of a worker whose instance has fallen apart."""
BARE = 5
"""Exit status of a worker that cannot have an adapter which rows may come with."""


def serve(config: WorkerConfig) -> int:
    """Run one process of an instance until the driver lets it go; returns the exit status."""
    line = Line(config, orphaned=lambda: os._exit(ORPHANED))
    line.start()
    torch.set_num_threads(config.model.threads)
    try:
        world = _meet(config)
        model = Model(config.model, world)
    except WorldError:
        log.exception("the instance does not come together")
        os._exit(APART)  # threads of the world may still wait for those who are gone
    except PlaitError as error:
        # A model that can never be served: starting again would not help, so say why instead.
        line.send(Refusal(str(error)))
        line.close()
        return 2
    if not _adapt_all(config, model):
        line.close()
        return BARE
    # A second pool of threads would spin on the cores of the first for a while after each use.
    torch.set_num_threads(model.threads_of_torch)
    gc.collect()
    gc.freeze()  # what stays for the life of the process need not be looked through again
    executor = MemberExecutor(model, config.instance, world) if world else Executor(model, config.instance)
    progress = Progress()
    model.watch(progress.stored)
    line.fabric = fabric = Fabric(config, model.pool, _shard(model), progress, line.send)
    executor.exchange = fabric.exchange
    fabric.start()
    line.send(
        Hello(
            slots=config.model.slots,
            kernels=choose(config.model.device).why,
            address=fabric.lender.address,
            shard=fabric.store.shard,
        )
    )
    threading.Thread(target=_populate, args=(model.pool,), name="populate", daemon=True).start()
    try:
        while (order := line.orders.get()) is not None:
            if not isinstance(order, Order):
                _change(order, executor, progress, line)
                continue
            progress.begin(order.step.id, order.step.repeat)
            answer = _carry_out(executor, order)
            progress.end(order.step.id, failed=isinstance(answer, Fault))
            if config.model.rank.answers or isinstance(answer, Fault):
                line.send(answer)
        if world is not None:
            world.close()
    except WorldError:
        log.exception("the instance has fallen apart")
        os._exit(APART)
    fabric.close()
    line.close()
    gc.unfreeze()
    return 0


def _adapt_all(config: WorkerConfig, model: Model) -> bool:
    """Have the adapters of the configuration; False where one cannot be had. Another start may find it."""
    for adapter in config.adapters:
        try:
            model.adapters.load(adapter)
        except PlaitError as error:
            log.error("without adapter %d nothing is served: %s", adapter.number, error)
            return False
    return True


def _change(order: Load | Adapt | Unadapt, executor: Executor, progress: Progress, line: Line) -> None:
    """What steps are computed with, from the next one on."""
    match order:
        case Load():
            line.send(_load(order, executor, progress))
        case Adapt():
            line.send(_adapt(order.adapter, executor.model))
        case Unadapt():
            executor.model.adapters.drop(order.number)


def _adapt(adapter: Adapter, model: Model) -> HasAdapter | LacksAdapter:
    torch.set_num_threads(model.config.threads)
    try:
        model.adapters.load(adapter)
    except (PlaitError, OSError, MemoryError) as error:
        return LacksAdapter(adapter.number, str(error) or type(error).__name__)
    finally:
        torch.set_num_threads(model.threads_of_torch)
    return HasAdapter(adapter.number)


def _load(order: Load, executor: Executor, progress: Progress) -> Loaded | LoadFault:
    """Take other weights into the place of those that are there."""
    old = executor.model
    torch.set_num_threads(old.config.threads)
    try:
        if old.refresh(verified(Path(order.folder), order.files)):
            return Loaded(order.version)
        executor.model = Model(replace(old.config, folder=order.folder), old.world, old.pool)
    except (PlaitError, OSError) as error:
        return LoadFault(order.version, str(error))
    finally:
        torch.set_num_threads(old.threads_of_torch)
    executor.model.watch(progress.stored)
    del old
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    return Loaded(order.version)


def _meet(config: WorkerConfig) -> World | None:
    """The processes of the instance; None where this is the only one."""
    if config.model.rank.size == 1:
        return None
    os.umask(0o077)  # the file in which they meet is for this user only
    return World(config.model.rank, config.meeting, config.patience_s)


def _shard(model: Model) -> Shard:
    """What this process holds of every request. Where layers differ in their heads, it has all of them."""
    layers, rank = model.shape.layers, model.config.rank
    mine, heads = rank.layers(len(layers)), rank.share(max(layer.kv_heads for layer in layers))
    return Shard(Interval(mine.start, mine.stop), Interval(heads.start, heads.stop))


def _populate(pool: KvPool) -> None:
    """Take the pool's memory while the cores have nothing better to do."""
    with contextlib.suppress(OSError):  # where threads have no priority of their own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
    pool.populate()


def _carry_out(executor: Executor, order: Order) -> Answer | Fault:
    begin_ns = time.monotonic_ns()
    try:
        draws = executor.run(order.step, order.opened, order.members)
    except StepFault as fault:
        log.exception("step %d failed", order.step.id)
        return Fault(order.step.id, str(fault))
    return Answer(order.step.id, draws, begin_ns, time.monotonic_ns() - begin_ns)


def main() -> int:
    """`python -m plait.worker`: the configuration is the first line of stdin."""
    config = WorkerConfig.from_line(_first_line())
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format=f"%(asctime)s worker {config.identity.decode()} %(levelname)s %(message)s",
    )
    return serve(config)


def _first_line() -> bytes:
    """Read unbuffered: what follows on stdin is for `Line` to watch."""
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = os.read(sys.stdin.fileno(), 1)
        if not byte:
            break
        line += byte
    return bytes(line)
