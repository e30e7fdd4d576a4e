"""`LiveSource`: the dashboard of a running engine."""

import logging
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from plait import __version__
from plait.spec.command import Command
from plait.spec.errors import UserError
from plait.spec.event import Event, WorkerUp
from plait.spec.slo import Slo
from plait.workload.board.board import Board, BoardConfig
from plait.workload.board.sheet import Sheet, encode
from plait.workload.board.showing import picture_of

if TYPE_CHECKING:
    from plait.runtime.engine import Engine

log = logging.getLogger("plait.server.dash")
CURVES_NS = 300_000_000_000
"""How far back curves reach."""


def board_of(engine: "Engine", slo: Slo | None) -> Board:
    """A board for what an engine will do, which knows the instances that are up."""
    board, core = Board(BoardConfig.of(asdict(engine.config.manager), slo, CURVES_NS)), engine.core
    for instance, seat in core.seats.items():
        slots = core.ledger.capacity(instance)
        board.see(engine.driver.now_ns(), WorkerUp(instance, seat.epoch, slots), ())
    return board


class LiveSource:
    """Sees every call of the engine's core from now on. Instances that are up already count as up."""

    def __init__(self, engine: "Engine", slo: Slo | None) -> None:
        """`slo`: objectives that requests are held against; None: those of elastic instances, if any."""
        self._engine = engine
        self._board = board_of(engine, slo)
        self._fault = ""
        engine.watch(self._see)

    def _see(self, now_ns: int, event: Event, commands: Sequence[Command]) -> None:
        """A fault here is ours, and the engine goes on without us."""
        if self._fault:
            return
        try:
            self._board.see(now_ns, event, commands)
        except Exception:
            self._fault = "the dashboard lost track of the engine; the server's log says where"
            log.exception("the dashboard cannot follow %r and shows nothing more", event)

    async def refresh(self) -> None:
        """See `Source`. The engine told everything already."""

    def sheet(self) -> bytes:
        """See `Source`."""
        if self._fault:
            return self.failed(self._fault)
        picture = picture_of(self._board, self._engine.driver.now_ns())
        return encode(Sheet(self._engine.card.name, self._world, __version__, picture))

    def past(self, at_us: int) -> bytes:
        """Raises UserError: pictures of the past are in journals."""
        raise UserError("a live page shows the present: open the journal with `plait dash`", "at")

    def failed(self, reason: str) -> bytes:
        """See `Source`."""
        return encode(Sheet(self._engine.card.name, self._world, __version__, fault=reason))

    @property
    def _world(self) -> str:
        return "paced" if self._engine.config.meta.get("paced") else "live"
