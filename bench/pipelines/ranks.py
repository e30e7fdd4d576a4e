"""A pool of processes that meet once over gloo and then run many functions together."""

import contextlib
import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

PATIENCE_S = 30.0


class Ranks:
    """So many processes, rank 0 first. A context manager."""

    def __init__(self, count: int) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "torch.distributed", "plait.training.pipeline"])
        self._folder = tempfile.TemporaryDirectory(prefix="plait-ranks-")
        store = str(Path(self._folder.name) / "store")
        self._ends: list[Connection] = []
        self.processes = []
        for rank in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, rank, count, store), daemon=True)
            process.start()
            theirs.close()
            self._ends.append(ours)
            self.processes.append(process)

    def run(self, function: Callable[..., Any], *arguments: Any, among: int | None = None) -> list[Any]:
        """What `function(rank, *arguments)` gives in the first `among` processes, in the order of ranks.

        Raises:
            RuntimeError: it raised somewhere, or a process ended.
        """
        ends = self._ends[: among or len(self._ends)]
        for end in ends:
            with contextlib.suppress(BrokenPipeError):  # found out when its answer is waited for
                end.send((function, arguments))
        answers: dict[Connection, Any] = {}
        while len(answers) < len(ends):
            for end in wait([end for end in ends if end not in answers]):
                try:
                    answers[end] = end.recv()
                except (EOFError, ConnectionResetError):
                    answers[end] = ("the process ended", None)
        faults = [answers[end][0] for end in ends if answers[end][0]]
        if faults:
            raise RuntimeError("\n".join(faults))
        return [answers[end][1] for end in ends]

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, *_: object) -> None:
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.send(None)
        for process in self.processes:
            process.join(10)
            process.kill()
            process.join()
        self._folder.cleanup()


def _serve(end: Connection, rank: int, count: int, store: str) -> None:
    torch.set_num_threads(1)
    patience = timedelta(seconds=PATIENCE_S)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=count, timeout=patience
    )
    while (order := end.recv()) is not None:
        function, arguments = order
        try:
            end.send(("", function(rank, *arguments)))
        except Exception:  # noqa: BLE001 - it is told to the parent
            end.send((f"rank {rank}: {traceback.format_exc()}", None))
    dist.destroy_process_group()
