"""`DecodeGraphs`: one CUDA graph for each batch size of a decode step, captured when the model is loaded.

The GPU's twin of `plait.model.decode`: a step of n rows replays the graph of the next size; rows beyond n
are idle and use a spare page of the pool that no request owns. Graphs are captured from the largest size
down and share one pool of memory, so that smaller ones fit in what the largest took.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from plait.model.check import agree
from plait.model.decode import SIZES
from plait.model.inputs import StepInputs
from plait.model.pool import KvPool
from plait.model.staging import Static, used_tables

log = logging.getLogger(__name__)

WARM_RUNS = 2
"""Runs before a capture: kernels are compiled and libraries set up in them."""
Capture = Callable[[Callable[[], Tensor]], tuple[Tensor, Callable[[], None]]]
"""Takes a computation; gives its result, at an address that stays, and what computes it anew."""


class CudaGraphs:
    """Captures computations on the current CUDA device, in one shared pool of memory."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        """See `Capture`."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_RUNS):
                compute()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = compute()
        return result, graph.replay


@dataclass(slots=True)
class Captured:
    """A graph with the tensors that it reads and the logits that it leaves."""

    replay: Callable[[], None]
    moving: Static
    """Tokens, positions, slots and lens: what every step brings anew."""
    inputs: StepInputs
    logits_BV: Tensor


class DecodeGraphs:
    """Plays decode steps. `play` gives None where there is no graph: then the caller computes the step."""

    def __init__(
        self,
        forward: Callable[[StepInputs], Tensor],
        capture: Capture,
        pool: KvPool,
        max_len: int,
        sizes: tuple[int, ...] = SIZES,
    ) -> None:
        """Capture every size, the largest first.

        Args:
            forward: gives logits [L, V] of inputs that lie on the pool's device.
            sizes: batch sizes that get a graph, ascending.
        """
        self._forward, self._pool, self._sizes = forward, pool, sizes
        self._device = pool.layers[0].device
        self._pages = -(-max_len // pool.page)
        self._graphs: dict[int, Captured] = {}
        try:
            for size in reversed(sizes):
                self._graphs[size] = self._captured(size, capture)
        except RuntimeError as error:
            self._give_up(str(error))

    def play(self, inputs: StepInputs) -> Tensor | None:
        """Logits [L, V] of the wanted tokens of a step with one token a row; valid until the next step.

        Args:
            inputs: on the host.
        """
        rows = len(inputs.rows_R)
        if not self._graphs or len(inputs.tokens_T) != rows or not 0 < rows <= self._sizes[-1]:
            return None
        size = next(size for size in self._sizes if size >= rows)
        graph = self._graphs[size]
        graph.moving.fill(self._padded(inputs, size))
        tables_RP = used_tables(inputs, self._pool.page)
        if self._device.type == "cuda":
            tables_RP = tables_RP.pin_memory()
        # What is left in the other places are pages of earlier steps: nobody's row reads them.
        graph.inputs.tables_RP[:rows, : tables_RP.shape[1]].copy_(tables_RP, non_blocking=True)
        graph.replay()
        logits_LV = graph.logits_BV[:rows]
        return logits_LV if len(inputs.wanted_L) == rows else logits_LV[inputs.wanted_L.to(self._device)]

    def _captured(self, size: int, capture: Capture) -> Captured:
        """Capture the graph of a size, and check it against the forward that it was captured from."""
        page, spare, device = self._pool.page, self._pool.spare, self._device
        moving = Static(self._idle(size), device)
        tokens_T, positions_T, slots_T, lens_R = moving.tensors
        inputs = StepInputs(
            tokens_T=tokens_T,
            positions_T=positions_T,
            slots_T=slots_T,
            starts_R=torch.arange(size + 1, dtype=torch.int32, device=device),
            lens_R=lens_R,
            rows_R=torch.arange(size, dtype=torch.int32, device=device),
            tables_RP=torch.full((size, self._pages), spare // page, dtype=torch.int32, device=device),
            wanted_L=torch.arange(size, device=device),
        )
        theirs_BV = self._forward(inputs)
        logits_BV, replay = capture(lambda: self._forward(inputs))
        replay()
        if not agree(logits_BV, theirs_BV, self._pool.layers[0].dtype):
            raise RuntimeError(f"the graph of {size} rows gives other logits than the model")
        return Captured(replay, moving, inputs, logits_BV)

    def _give_up(self, reason: str) -> None:
        log.warning("decode steps go without graphs: %s", reason)
        self._graphs.clear()

    def _idle(self, rows: int) -> list[Tensor]:
        """Tokens, positions, slots and lens of rows that nobody owns."""
        return [
            torch.zeros(rows, dtype=torch.int64),
            torch.zeros(rows, dtype=torch.int64),
            torch.full((rows,), self._pool.spare, dtype=torch.int32),
            torch.ones(rows, dtype=torch.int32),
        ]

    def _padded(self, inputs: StepInputs, size: int) -> list[Tensor]:
        """The same of a step, filled up with idle rows."""
        ours = (inputs.tokens_T, inputs.positions_T, inputs.slots_T, inputs.lens_R)
        idle = self._idle(size - len(inputs.rows_R))
        return [torch.cat(pair) for pair in zip(ours, idle, strict=True)]
