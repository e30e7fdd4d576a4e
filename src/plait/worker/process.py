"""The life of a worker process: load, say hello, carry out orders one after another, leave."""

import contextlib
import gc
import logging
import os
import sys
import threading
import time

import torch

from plait.kernels.choice import choose
from plait.model.model import Model
from plait.model.pool import KvPool
from plait.spec.errors import PlaitError
from plait.worker.config import WorkerConfig
from plait.worker.executor import Executor, StepFault
from plait.worker.fabric import Fabric
from plait.worker.line import Line
from plait.worker.progress import Progress
from plait.worker.wire import Answer, Fault, Hello, Order, Refusal

log = logging.getLogger(__name__)

ORPHANED = 3
"""Exit status of a worker whose driver is gone."""


def serve(config: WorkerConfig) -> int:
    """Run one instance until the driver lets it go; returns the exit status."""
    line = Line(config, orphaned=lambda: os._exit(ORPHANED))
    line.start()
    torch.set_num_threads(config.model.threads)
    try:
        model = Model(config.model)
    except PlaitError as error:
        # A model that can never be served: starting again would not help, so say why instead.
        line.send(Refusal(str(error)))
        line.close()
        return 2
    # A second pool of threads would spin on the cores of the first for a while after each use.
    torch.set_num_threads(model.threads_of_torch)
    gc.collect()
    gc.freeze()  # what stays for the life of the process need not be looked through again
    executor = Executor(model, config.instance)
    progress = Progress()
    model.watch(progress.stored)
    line.fabric = fabric = Fabric(config, model.pool, progress, line.send)
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
    while (order := line.orders.get()) is not None:
        progress.begin(order.step.id)
        answer = _carry_out(executor, order)
        progress.end(order.step.id, failed=isinstance(answer, Fault))
        line.send(answer)
    fabric.close()
    line.close()
    gc.unfreeze()
    return 0


def _populate(pool: KvPool) -> None:
    """Take the pool's memory while the cores have nothing better to do."""
    with contextlib.suppress(OSError):  # where threads have no priority of their own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
    pool.populate()


def _carry_out(executor: Executor, order: Order) -> Answer | Fault:
    begin_ns = time.monotonic_ns()
    try:
        draws = executor.run(order.step, order.opened)
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
        format=f"%(asctime)s worker {config.instance}.{config.epoch} %(levelname)s %(message)s",
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
