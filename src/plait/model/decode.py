"""`DecodeTapes`: one tape for each batch size of a decode step, recorded when it is first needed.

A step of n rows plays the tape of the next size of `SIZES`; rows beyond n are idle: they read and
write a spare page of the pool that no request owns.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from plait.kernels.calls import Calls
from plait.model.check import agree
from plait.model.inputs import StepInputs
from plait.model.pool import KvPool
from plait.model.tape import CannotRecord, Recorder, Tape

log = logging.getLogger(__name__)

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Batch sizes that get a tape of their own."""
Forward = Callable[[StepInputs], Tensor]
"""Gives the logits [L, V] of the wanted tokens."""


@dataclass(slots=True)
class Recorded:
    """A tape with the tensors that it reads and the logits that it leaves."""

    tape: Tape
    inputs: StepInputs
    logits_BV: Tensor


class DecodeTapes:
    """Plays decode steps. `play` gives None where there is no tape: then the caller computes the step."""

    def __init__(self, forward: Forward, native: Calls, pool: KvPool, max_len: int, threads: int) -> None:
        """`forward`: the model's own, which tapes are recorded from and held against."""
        self._forward, self._native, self._pool, self._threads = forward, native, pool, threads
        self._pages = -(-max_len // pool.page)
        self._tapes: dict[int, Recorded] = {}
        self._able = True

    def play(self, inputs: StepInputs) -> Tensor | None:
        """Logits [L, V] of the wanted tokens of a step with one token a row; valid until the next step."""
        rows = len(inputs.rows_R)
        if not self._able or len(inputs.tokens_T) != rows or not 0 < rows <= SIZES[-1]:
            return None
        size = next(size for size in SIZES if size >= rows)
        recorded = self._tapes.get(size) or self._record(size, inputs)
        if recorded is None:
            return None
        fill(recorded.inputs, inputs, self._pool)
        recorded.tape.play()
        logits_LV = recorded.logits_BV[:rows]
        return logits_LV if len(inputs.wanted_L) == rows else logits_LV[inputs.wanted_L]

    def _record(self, size: int, inputs: StepInputs) -> Recorded | None:
        """Record the tape of a size, and check it against the forward that it was recorded from."""
        static = idle_inputs(size, self._pages, self._pool)
        fill(static, inputs, self._pool)
        recorder = Recorder(self._native, self._threads)
        try:
            with torch.inference_mode(), recorder:
                logits_BV = self._forward(static)
        except CannotRecord as reason:
            self._give_up(str(reason))
            return None
        recorded = Recorded(recorder.tape(), static, logits_BV)
        recorded.tape.play()
        rows = len(inputs.rows_R)
        every = torch.arange(rows)
        theirs_BV = self._forward(StepInputs(*(getattr(inputs, n) for n in StepInputs.__slots__[:-1]), every))
        # Both are right to a few roundings of each layer, and rare prompts amplify them.
        if not agree(recorded.logits_BV[:rows], theirs_BV, self._pool.layers[0].dtype, 4):
            self._give_up("its logits are not those of the model")
            return None
        log.info("a decode step of %d rows is a tape of %d calls", size, len(recorded.tape))
        self._tapes[size] = recorded
        return recorded

    def _give_up(self, reason: str) -> None:
        log.warning("decode steps go without tapes: %s", reason)
        self._able = False


def idle_inputs(size: int, pages: int, pool: KvPool) -> StepInputs:
    """A decode step of rows that nobody owns, at addresses that stay."""
    return StepInputs(
        tokens_T=torch.zeros(size, dtype=torch.int64),
        positions_T=torch.zeros(size, dtype=torch.int64),
        slots_T=torch.full((size,), pool.spare, dtype=torch.int32),
        starts_R=torch.arange(size + 1, dtype=torch.int32),
        lens_R=torch.ones(size, dtype=torch.int32),
        rows_R=torch.arange(size, dtype=torch.int32),
        tables_RP=torch.full((size, pages), pool.spare // pool.page, dtype=torch.int32),
        wanted_L=torch.arange(size),
    )


def fill(static: StepInputs, inputs: StepInputs, pool: KvPool) -> None:
    """Put a decode step in place of the first rows; the others are idle."""
    rows = len(inputs.rows_R)
    idle = {"tokens_T": 0, "positions_T": 0, "slots_T": pool.spare, "lens_R": 1}
    for name, nothing in idle.items():  # numpy assigns short arrays in a tenth of torch's time
        places = getattr(static, name).numpy()
        places[:rows], places[rows:] = getattr(inputs, name).numpy(), nothing
    fill_tables(static.tables_RP[:rows], inputs.tables_RP, inputs.rows_R, inputs.lens_R, pool.page)
    static.tables_RP.numpy()[rows:, 0] = pool.spare // pool.page


def fill_tables(static_RP: Tensor, tables_RP: Tensor, rows_R: Tensor, lens_R: Tensor, page: int) -> None:
    """Put the tables of some rows, as far as they are used, in their order."""
    pages = -(-int(lens_R.numpy().max()) // page)
    static_RP.numpy()[:, :pages] = tables_RP.numpy()[rows_R.numpy(), :pages]
